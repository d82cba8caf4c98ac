"""The experiments of Sabidussi et al. 2021 on virtual heads: noise, small structures, protocols, repeats, edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion
from scipy.optimize import least_squares

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.posterior.smooth_field import SmoothFieldPosterior
from qmri_bidsapp.estimators.spatial.patches import QUANTITIES
from qmri_bidsapp.estimators.spatial.trials import Scene, estimate_with, measure, per_voxel
from qmri_bidsapp.estimators.spatial.virtual_heads import RELAXATION_STATISTICS, STRUCTURES
from qmri_bidsapp.models.base import SignalModel

#: Signal-to-noise ratios of the first experiment, and of all others (section 5.1.2).
SNRS = (3.0, 5.0, 10.0, 20.0, 50.0, 100.0)
SNR = 10.0
#: Percentiles over voxels.
PERCENTILES = (5, 25, 50, 75, 95)
#: Relaxation times of small structures, relative to the surrounding tissue.
CONTRASTS = (0.5, 0.7, 1.3, 1.5, 2.0)
#: Voxels along a line, and minimum distance between the centres of structures along an axis.
LINE_LENGTH = 5
MIN_DISTANCE = 9
#: Scans of each head from which repeatability is estimated, as in vivo (section 4.3.2).
N_SCANS = 2
#: Side of the scene with an edge (voxels), tilt of the edge (radian), and maximum distance of its voxels (voxels).
EDGE_SIZE = 48
EDGE_TILT = 0.1
EDGE_REACH = 6.0
#: Limits of a sigmoid's slope, per voxel; width from 10 to 90 % at slope 1, voxels.
SLOPES = (0.05, 50.0)
UNIT_WIDTH = float(2 * np.log(9))

Estimators = Mapping[str, Estimator]


class ExperimentSettings(NamedTuple):
    """Settings that all experiments share.

    Attributes
    ----------
    model : SignalModel
    n_repetitions : int
        At least 2.
    n_slow : int
        At least 2; maximum for estimators of a spatial field, which take many times longer.
    seed : int
        Seed of the noise, which is the same for all estimators.
    is_rician : bool
        Rician noise instead of Gaussian.
    report : callable
        Called with a description of the current step.
    """

    model: SignalModel
    n_repetitions: int
    n_slow: int = 5
    seed: int = 0
    is_rician: bool = False
    report: Callable[[str], None] = lambda what: None


class Spread(NamedTuple):
    """`PERCENTILES` over voxels of relative bias, its absolute value, and coefficient of variation (eqs. 7, 8)."""

    bias: list[float]
    absolute_bias: list[float]
    cv: list[float]


def repeat(
    setting: ExperimentSettings, estimator: Estimator, scene: Scene, acquisition: Acquisition, snr: float, what: str
) -> npt.NDArray[np.float64]:
    """Return the relaxation times of the brain's voxels, (n_repetitions, n_voxels) s, NaN where an estimate failed."""
    is_slow = isinstance(estimator, SmoothFieldPosterior)
    n_repetitions = min(setting.n_repetitions, setting.n_slow) if is_slow else setting.n_repetitions
    found = []
    for index in range(n_repetitions):
        setting.report(f"{what}, {estimator.name}: repetition {index + 1} of {n_repetitions}")
        rng = np.random.default_rng([setting.seed, index])
        trial = measure(setting.model, scene, acquisition, snr, rng, is_rician=setting.is_rician)
        found.append(estimate_with(estimator, trial)[0])
    return np.stack(found)


def spread_of(estimates: npt.NDArray[np.float64], truth: npt.NDArray[np.float64]) -> Spread:
    """Return the spread of estimates, (n_repetitions, n_voxels), over voxels."""
    bias, cv = per_voxel(estimates, truth)
    return Spread(*(np.percentile(part, PERCENTILES, method="nearest").tolist() for part in (bias, abs(bias), cv)))


def noise_robustness(
    setting: ExperimentSettings, estimators: Estimators, scene: Scene, acquisition: Acquisition
) -> dict[str, dict[str, Spread]]:
    """Return the spread over the brain for every SNR and estimator (section 5.1.1)."""
    return {
        f"{snr:g}": {
            name: spread_of(repeat(setting, estimator, scene, acquisition, snr, f"noise, SNR {snr:g}"), scene.truth)
            for name, estimator in estimators.items()
        }
        for snr in SNRS
    }


def generalisation(
    setting: ExperimentSettings,
    estimators: Mapping[str, Estimators],
    scene: Scene,
    protocols: Mapping[str, Acquisition],
) -> dict[str, dict[str, Any]]:
    """Return the spread over the brain for every protocol, and the repeatability of two scans (sections 5.3, 5.4).

    Parameters
    ----------
    setting, scene
        See `ExperimentSettings` and `Scene`.
    estimators : mapping
        Protocol -> estimators fitted to it.
    protocols : mapping
        Name -> protocol.
    """
    results: dict[str, dict[str, Any]] = {}
    for name, acquisition in protocols.items():
        results[name] = {}
        for key, estimator in estimators[name].items():
            found = repeat(setting, estimator, scene, acquisition, SNR, f"{name} times")
            spread = spread_of(found, scene.truth)
            scans = per_voxel(found[:N_SCANS], scene.truth)[1]
            mean = float(np.mean(scans[np.isfinite(scans)]))
            results[name][key] = {**spread._asdict(), "mean_cv_of_two_scans": mean}
    return results


def small_structures(
    setting: ExperimentSettings, estimators: Estimators, scene: Scene, acquisition: Acquisition
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Measure the contrast of points and lines with another relaxation time (section 5.1.2).

    Returns
    -------
    dict
        Structure -> factor of the time -> estimator -> ``kept``, ``bias`` and ``cv``, medians over voxels. ``kept``
        is the difference of the mean estimate with and without the structure, over the true difference.
    """
    sites = find_sites(scene)
    results: dict[str, dict[str, dict[str, dict[str, float]]]] = {
        kind: {f"{factor:g}": {} for factor in CONTRASTS} for kind in sites
    }
    for name, estimator in estimators.items():
        plain = repeat(setting, estimator, scene, acquisition, SNR, "structures, none").mean(0)
        for factor in CONTRASTS:
            changed = scene.theta.copy()
            for places in sites.values():
                changed[..., -1][places] *= factor
            other = scene._replace(theta=changed)
            found = repeat(setting, estimator, other, acquisition, SNR, f"structures, factor {factor:g}")
            bias, cv = per_voxel(found, other.truth)
            kept = (found.mean(0) - plain) / (other.truth - scene.truth + (other.truth == scene.truth))
            for kind, places in sites.items():
                voxels = places[scene.brain]
                results[kind][f"{factor:g}"][name] = {
                    key: float(np.median(part[voxels])) for key, part in (("kept", kept), ("bias", bias), ("cv", cv))
                }
    return results


def find_sites(scene: Scene) -> dict[str, npt.NDArray[np.bool_]]:
    """Return sites of structures, (n_slices, height, width) each, far apart and inside one tissue.

    Points are in grey and in white matter, lines only in white matter.
    """
    kinds = {"point in grey matter": "gm", "point": "wm", "horizontal line": "wm", "vertical line": "wm"}
    sites = {kind: np.zeros(scene.structures.shape, dtype=bool) for kind in kinds}
    half = LINE_LENGTH // 2
    for index, plane in enumerate(scene.structures):
        tissues = {name: np.isin(plane, _structures_of(name)) for name in ("gm", "wm")}
        margins = {"gm": np.ones((3, 3)), "wm": np.ones((LINE_LENGTH + 2,) * 2)}
        taken: list[npt.NDArray[np.int64]] = []
        room = {name: np.argwhere(binary_erosion(tissues[name], margins[name])) for name in ("gm", "wm")}
        order = {kind: iter(room[tissue]) for kind, tissue in kinds.items()}
        while order:
            for kind in list(order):
                place = next((p for p in order[kind] if all(abs(p - q).max() >= MIN_DISTANCE for q in taken)), None)
                if place is None:
                    del order[kind]
                    continue
                taken.append(place)
                reach = {"horizontal line": (0, half), "vertical line": (half, 0)}.get(kind, (0, 0))
                rows, columns = (slice(p - r, p + r + 1) for p, r in zip(place, reach, strict=True))
                sites[kind][index, rows, columns] = True
    return {kind: places for kind, places in sites.items() if places.any()}


def _structures_of(tissue: str) -> list[int]:
    """Return the structures of one tissue only."""
    return [index for index, (_, names) in enumerate(STRUCTURES, start=1) if names == (tissue,)]


def edge_scene(model: SignalModel) -> tuple[Scene, npt.NDArray[np.float64]]:
    """Return a slice with a straight, tilted edge from white to grey matter, and distances from it, voxels."""
    axis = np.arange(EDGE_SIZE) - (EDGE_SIZE - 1) / 2
    distance = np.cos(EDGE_TILT) * axis[None, :] + np.sin(EDGE_TILT) * axis[:, None]
    sides = [(_structures_of(name)[0], RELAXATION_STATISTICS[name]) for name in ("wm", "gm")]
    structures = np.where(distance < 0, sides[0][0], sides[1][0]).astype(np.uint8)

    def values(parameter: str) -> npt.NDArray[np.float32]:
        quantity = QUANTITIES[parameter]
        if quantity == "b":
            return np.full(distance.shape, 1.84, dtype=np.float32)
        white, grey = (getattr(tissue, quantity)[0] for _, tissue in sides)
        return np.where(distance < 0, white, grey).astype(np.float32)

    theta = np.stack([values(parameter.name) for parameter in model.parameters], axis=-1)
    return Scene(theta[None], structures[None]), distance


def edge_widths(
    setting: ExperimentSettings, estimators: Estimators, acquisition: Acquisition
) -> dict[str, dict[str, Any]]:
    """Return the width of an edge, 10 to 90 %, voxels, from a sigmoid fitted to each repetition (section 5.3).

    ``width`` has the percentiles over repetitions, ``profile`` the median estimates by distance, s.
    """
    scene, distance = edge_scene(setting.model)
    near = abs(distance) < EDGE_REACH
    results = {}
    for name, estimator in estimators.items():
        found = repeat(setting, estimator, scene, acquisition, SNR, "edge").reshape(-1, *distance.shape)
        widths = [sigmoid_width(distance[near], values[near]) for values in found]
        bins = np.round(2 * distance[near]) / 2
        profile = {f"{x:g}": float(np.nanmedian(found[:, near][:, bins == x])) for x in np.unique(bins)}
        results[name] = {"width": np.percentile(widths, PERCENTILES).tolist(), "profile": profile}
    return results


def sigmoid_width(distance: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> float:
    """Return the width, 10 to 90 %, of V / (1 + exp(-nu (x - x0))) + b, fitted to values (n,) at distances (n,).

    Residuals beyond the height of the step count linearly, since least-squares estimates have outliers.
    """
    good = np.isfinite(values)
    x, y = distance[good], values[good]
    left, right = np.median(y[x < 0]), np.median(y[x > 0])
    height = max(abs(right - left), np.finfo(float).eps)

    def residual(parameters: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        step, slope, centre, base = parameters
        curve: npt.NDArray[np.float64] = base + step * (1 + np.tanh(slope * (x - centre) / 2)) / 2
        return (curve - y) / height

    limits = ([-np.inf, SLOPES[0], -EDGE_REACH, -np.inf], [np.inf, SLOPES[1], EDGE_REACH, np.inf])
    start = (right - left, 2.0, 0.0, left)
    return UNIT_WIDTH / float(least_squares(residual, start, bounds=limits, loss="soft_l1").x[1])
