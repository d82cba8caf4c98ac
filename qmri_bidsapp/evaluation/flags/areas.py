"""How well flags detect voxels that a model does not describe: areas under ROC curves, and false positives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.transform import Rotation
from sklearn.metrics import roc_auc_score

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, InversionRecovery
from qmri_bidsapp.core.prior import Empirical, Prior, Uniform
from qmri_bidsapp.core.simulation import Noise, reference
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.learned.base import LearnedEstimator
from qmri_bidsapp.evaluation.flags.cases import CASES, Case
from qmri_bidsapp.evaluation.standards import shells, signals, standard
from qmri_bidsapp.evaluation.table3.healthy_brain import NEURITE_DISTRIBUTIONS
from qmri_bidsapp.fitting.series import fit_voxels
from qmri_bidsapp.fitting.trust import flag_voxels
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.rotation import turn
from qmri_bidsapp.models.smt import SphericalMeanTechnique
from qmri_bidsapp.registry import get_estimator, get_model
from qmri_bidsapp.uncertainty.certificate import N_VOXELS, Certificate, certify
from qmri_bidsapp.uncertainty.ood import LEVEL, Flags

Array = npt.NDArray[np.float64]

#: Voxels per case.
N_PER_CASE = 4000
#: Signal-to-noise ratio of diffusion and of other series.
DIFFUSION_SNR = 25.0
RELAXATION_SNR = 50.0
#: Largest number of bundles of a simulated voxel, fibres of each, and range of the orientation dispersion index.
MAX_BUNDLES = 3
N_FIBRES = 60
ODI = (0.03, 0.5)
#: Batch of voxels whose series are simulated.
BATCH = 500
#: Subjects and voxels of each tissue that make the healthy prior.
N_SUBJECTS, N_PER_SUBJECT = 5, 20_000
#: A voxel is outside the prior further than this many standard deviations from every tissue.
OUTSIDE = 4.0
#: Name of the row of all scores together.
TOGETHER = "flag"


@dataclass(frozen=True)
class Setting:
    """A model, the prior of the tissue, and the protocol and noise.

    Attributes
    ----------
    name : str
        For tables.
    model : SignalModel
    prior : Prior
    series : Acquisition
        As it is acquired.
    snr : float
    kind : {"gaussian", "rician"}
    estimator : str
    """

    name: str
    model: SignalModel
    prior: Prior
    series: Acquisition
    snr: float
    kind: Literal["gaussian", "rician"]
    estimator: str

    @cached_property
    def protocol(self) -> Acquisition:
        """The protocol as the model uses it."""
        return self.model.adapt(self.series)[0]

    @property
    def cases(self) -> dict[str, Case]:
        """The cases of the model; nothing is outside a uniform prior."""
        return {
            name: case
            for name, case in CASES[self.model.name].items()
            if not (case.outside and isinstance(self.prior, Uniform))
        }

    def fit(self, seed: int) -> Estimator:
        """Return the estimator, fitted; a learned one is trained on the prior."""
        kind = get_estimator(self.estimator)
        if issubclass(kind, LearnedEstimator):
            return kind(self.model, prior=self.prior).fit(self.protocol, seed=seed)
        return kind(self.model).fit(self.protocol, seed=seed)


def settings(name: str, estimator: str | None = None) -> list[Setting]:
    """Return the settings of a model, one per prior; the estimator is `nlls` where none is given."""
    model = get_model(name)
    chosen = estimator or "nlls"
    label = name if estimator is None else f"{name}:{estimator}"
    if name == "smt":
        series = spherical_mean_series()
        return [
            Setting(label, model, healthy_prior(model), series, DIFFUSION_SNR, "gaussian", chosen),
            Setting(f"{label} uniform", model, model.default_prior(), series, DIFFUSION_SNR, "gaussian", chosen),
        ]
    if name == "noddi":
        series = _turned_shells(9, (700.0, 32), (2000.0, 64))
        return [Setting(label, model, model.default_prior(), series, DIFFUSION_SNR, "gaussian", chosen)]
    return [Setting(label, model, model.default_prior(), standard(name), RELAXATION_SNR, "rician", chosen)]


def spherical_mean_series() -> Diffusion:
    """Return the protocol of Gyori et al. 2021, volume by volume."""
    return _turned_shells(12, *((b, 32) for b in (1000.0, 2000.0, 3500.0, 5000.0)))


def _turned_shells(n_b0: int, *parts: tuple[float, int]) -> Diffusion:
    """Return a protocol whose shells are turned against each other, as no simulation of the program knows them."""
    series = shells(n_b0, *parts)
    direction = np.array(series.direction)
    for k, shell in enumerate(series.shells()[1:]):
        direction[shell] = Rotation.random(random_state=k).apply(direction[shell])
    return replace(series, direction=tuple(map(tuple, direction.tolist())))


def healthy_prior(model: SignalModel) -> Prior:
    """Return the distribution of the white and grey matter of some subjects."""
    rng, bounds = np.random.default_rng(0), np.array([p.bounds for p in model.parameters[1:]]).T
    drawn = [[NEURITE_DISTRIBUTIONS[name].draw(N_PER_SUBJECT, rng) for name in ("gm", "wm")] for _ in range(N_SUBJECTS)]
    return Empirical(model.parameters[1:], [np.concatenate(parts).clip(*bounds) for parts in drawn])


def _outside(model: SignalModel, n: int, rng: np.random.Generator) -> Array:
    """Return parameters of the spherical mean that are far from white and grey matter."""
    values = Uniform(model.parameters[1:]).draw(20 * n, rng)
    far = np.ones(len(values), dtype=bool)
    for tissue in (NEURITE_DISTRIBUTIONS["gm"], NEURITE_DISTRIBUTIONS["wm"]):
        correlation = np.array([[1.0, tissue.correlation], [tissue.correlation, 1.0]])
        away = (values - tissue.mean) / tissue.std
        far &= np.einsum("ni,ij,nj->n", away, np.linalg.inv(correlation), away) > OUTSIDE**2
    return np.asarray(values[far][:n])


def draw(setting: Setting, case: Case, n: int, seed: int) -> tuple[Array, Array]:
    """Return series of voxels of a case, (n, n_images), and the assumed noise, (n,)."""
    rng = np.random.default_rng([seed, 1])
    values = _outside(setting.model, n, rng) if case.outside else setting.prior.draw(n, rng)
    believed = setting.series
    actual = believed if case.protocol is None else case.protocol(believed)
    clean = clean_series(setting.model, np.insert(values, 0, 1.0, axis=1), actual, rng)
    if case.change is not None:
        clean = case.change(clean, actual, rng)
    snr = case.snr or setting.snr
    noise = Noise("rician" if case.rician else setting.kind, (snr, snr))
    clean = np.abs(clean) if setting.kind == "rician" else clean
    sigma = reference(torch.tensor(clean), believed) / snr
    generator = torch.Generator().manual_seed(seed)
    measured = noise.add(torch.tensor(clean), case.noise_factor * sigma, believed, generator)
    return measured.numpy(), sigma.numpy().ravel()


def clean_series(model: SignalModel, theta: Array, acquisition: Acquisition, rng: np.random.Generator) -> Array:
    """Return noise-free signals of tissue of any direction; of inversion recoveries with their signs."""
    if isinstance(acquisition, InversionRecovery):
        return signals(model, theta, replace(acquisition, signed=True))
    if not isinstance(model, SphericalMeanTechnique):
        turned = torch.tensor(theta)
        if model.directional:
            turned = turn(model, turned, torch.tensor(Rotation.random(len(theta), random_state=rng).as_matrix()))
        return signals(model, turned.numpy(), acquisition)
    assert isinstance(acquisition, Diffusion)
    parts = [
        model.signal_of_fibres(part, torch.tensor(_watson_fibres(len(part), rng)), acquisition).numpy()
        for part in torch.split(torch.tensor(theta), BATCH)
    ]
    return np.concatenate(parts)


def _watson_fibres(n: int, rng: np.random.Generator) -> Array:
    """Return (n, n_fibres, 3) unit vectors of one to three bundles, each with a Watson distribution about its axis."""
    axes = Rotation.random(n * MAX_BUNDLES, random_state=rng).as_matrix().reshape(n, MAX_BUNDLES, 3, 3)
    bundle = rng.integers(MAX_BUNDLES, size=(n, N_FIBRES)) % rng.integers(1, MAX_BUNDLES + 1, (n, 1))
    kappa = 1 / np.tan(0.5 * np.pi * rng.uniform(*ODI, (n, 1)))
    # The cosine to the axis, by inversion of its cumulative distribution.
    grid = np.linspace(0, 1, 513)
    density = np.exp(kappa * (grid**2 - 1))
    share = np.cumsum(density, axis=1)
    draws = rng.random((n, N_FIBRES))
    cosine = np.stack([np.interp(u, row / row[-1], grid) for u, row in zip(draws, share, strict=True)])
    azimuth, sine = rng.uniform(0, 2 * np.pi, (n, N_FIBRES)), np.sqrt(1 - cosine**2)
    local = np.stack([cosine, sine * np.cos(azimuth), sine * np.sin(azimuth)], axis=2)
    own = np.take_along_axis(axes, bundle[:, :, None, None], axis=1)
    return np.asarray(np.einsum("nfa,nfab->nfb", local, own))


@dataclass(frozen=True)
class Result:
    """Of one setting.

    Attributes
    ----------
    auroc : dict
        Case -> score -> area under the ROC curve of its p-values, against typical voxels.
    flagged : dict
        Case -> share of the voxels that are flagged at 5 %.
    false_positives : dict
        Score -> share of typical voxels with a p-value of at most 5 %.
    """

    auroc: dict[str, dict[str, float]]
    flagged: dict[str, float]
    false_positives: dict[str, float]


def evaluate(
    setting: Setting,
    *,
    n: int = N_PER_CASE,
    n_reference: int = N_VOXELS,
    seed: int = 0,
    report: Callable[[str], None] = lambda what: None,
) -> Result:
    """Measure the scores of a setting.

    Parameters
    ----------
    setting : Setting
    n : int
        Voxels per case; five times as many are typical.
    n_reference : int
        Voxels of the certificate.
    seed : int
    report : callable
        Called with the next step, for progress.
    """
    report(f"{setting.name}: estimator")
    estimator = setting.fit(seed)

    @cache
    def known(snr: float) -> Certificate:
        noise = Noise(setting.kind, (snr, snr))
        return certify(estimator, setting.protocol, noise=noise, prior=setting.prior, n=n_reference, seed=seed)

    def p_values_of(case: Case, n: int, own_seed: int) -> dict[str, Array]:
        series, noise_std = draw(setting, case, n, own_seed)
        _, measures = fit_voxels(estimator, setting.series, series, noise_std)
        return _p_values(flag_voxels(known(case.snr or setting.snr), measures, noise_std)[0])

    @cache
    def typical(snr: float | None) -> dict[str, Array]:
        return p_values_of(Case(snr=snr), 5 * n, seed + 1000)

    auroc, flagged = {}, {}
    for k, (name, case) in enumerate(setting.cases.items()):
        report(f"{setting.name}: {name}")
        found = p_values_of(case, n, seed + 2000 + k)
        auroc[name] = {score: _area(typical(case.snr)[score], p) for score, p in found.items()}
        flagged[name] = _flagged(found[TOGETHER])
    return Result(auroc, flagged, {score: _flagged(p) for score, p in typical(None).items()})


def _flagged(p: Array) -> float:
    return float((p <= LEVEL).mean())


def _p_values(flags: Flags) -> dict[str, Array]:
    """Return score -> p-values; zero without an estimate."""
    named = {reason.name.lower(): p for reason, p in flags.p_values.items()} | {TOGETHER: flags.p_value}
    return {name: np.nan_to_num(p.astype(np.float64), nan=0.0) for name, p in named.items()}


def _area(typical: Array, other: Array) -> float:
    """Return the area under the ROC curve of two sets of p-values."""
    is_other = np.repeat([False, True], [len(typical), len(other)])
    return float(roc_auc_score(is_other, -np.concatenate([typical, other])))
