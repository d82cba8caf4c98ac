"""How often estimates are wrong and unmarked when the input has a minor fault.

Voxels of plausible tissue (`standards.tissue`) are simulated with one fault each, fitted as in the app, and compared
with the truth. An estimate is *off* if it is more than three standard deviations from the truth, as 1 in 370 would be
with normal errors. It is *silent* if nothing marks the voxel: neither the flag, nor the label of the trust map (WIDE,
UNLIKE), nor the status.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion
from qmri_bidsapp.core.simulation import Noise, reference
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.learned.base import LearnedEstimator
from qmri_bidsapp.evaluation.flags.areas import Setting, clean_series, settings
from qmri_bidsapp.evaluation.flags.variations import Variation, variations_of, without
from qmri_bidsapp.evaluation.standards import tissue
from qmri_bidsapp.fitting.series import fit_voxels
from qmri_bidsapp.fitting.trust import flag_voxels, quantities_of, read_truth
from qmri_bidsapp.fitting.usable import usable_voxels
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.registry import get_estimator, get_model, load_estimators
from qmri_bidsapp.uncertainty.certificate import N_VOXELS, Certificate, certify
from qmri_bidsapp.uncertainty.inverse import Trust

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MODELS = ("t1", "t2", "smt", "noddi")
#: Voxels of each variation, and series that they come from: random faults of a series are drawn anew for each.
N_VOXELS_EACH = 4000
N_SERIES = 8
#: Standard deviations from the truth beyond which an estimate is off.
OFF = 3.0


@dataclass(frozen=True)
class Rates:
    """Shares of the estimates of one parameter.

    Attributes
    ----------
    off : float
        More than `OFF` standard deviations from the truth.
    silent : float
        Off, and the voxel is not marked.
    silent_outside : float
        Silent, and the truth is outside the 5 to 95 % range.
    no_std : float
        Without a standard deviation, never off.
    marked : float
        Marked, off or not.
    """

    off: float
    silent: float
    silent_outside: float
    no_std: float
    marked: float


class Instrument:
    """A fitted estimator with its certificate, for one protocol.

    Parameters
    ----------
    estimator : Estimator
        Fitted to the protocol.
    series : Acquisition
        As acquired.
    kind, snr
        Of the expected noise.
    n_reference : int
        Simulated voxels.
    seed : int
    """

    def __init__(self, estimator: Estimator, series: Acquisition, noise: Noise, n_reference: int, seed: int) -> None:
        self._estimator, self._series = estimator, series
        # As in the app: the noise of diffusion series is measured, other fits estimate it from their residuals.
        self._noise_is_known = isinstance(series, Diffusion)
        protocol, _ = estimator.model.adapt(series)
        self.certificate: Certificate = certify(
            estimator, protocol, noise=noise, n=n_reference, seed=seed, noise_is_known=self._noise_is_known
        )

    def rates(self, truth: Array, measured: Array, noise_std: Array) -> dict[str, Rates]:
        """Return parameter -> rates.

        Parameters
        ----------
        truth : ndarray
            (n, n_parameters) in each parameter's unit.
        measured : ndarray
            (n, n_images) as acquired, of `N_SERIES` series one after the other.
        noise_std : ndarray
            (n,) of the assumed noise.
        """
        parts = [self._judge(measured[part], noise_std[part]) for part in _series(len(truth))]
        estimate, std, lower, upper, marked = (np.concatenate(column) for column in zip(*parts, strict=True))
        space = self.certificate.space
        result = {}
        for k in space.axes:
            own = truth[:, space.columns[k]]
            inside = (own >= lower[:, k]) & (own <= upper[:, k])
            result[space.parameters[k].name] = rates_of(own, estimate[:, k], std[:, k].astype(float), marked, inside)
        return result

    def _judge(self, measured: Array, noise_std: Array) -> tuple[npt.NDArray[Any], ...]:
        """Return estimate, standard deviation and range of the truth, and which voxels are marked, of one series."""
        maps, measures = fit_voxels(
            self._estimator, self._series, measured, noise_std, noise_is_known=self._noise_is_known
        )
        estimate, std = quantities_of(self.certificate, maps)
        flags, _ = flag_voxels(self.certificate, measures, noise_std)
        reading = read_truth(self.certificate, estimate, std, measures.size / noise_std)
        marked = ~usable_voxels(maps.status, reading.trust, flags.reason) | (reading.trust == Trust.WIDE)
        return estimate, std, reading.lower, reading.upper, marked


def rates_of(truth: Array, estimate: Array, std: Array, marked: Mask, inside: Mask) -> Rates:
    """Return the rates of one parameter; arguments (n,): `marked`, and whether the range holds the truth."""
    off = np.abs(estimate - truth) > OFF * std
    silent = off & ~marked
    parts = (off, silent, silent & ~inside, ~np.isfinite(std), marked)
    return Rates(*(float(part.mean()) for part in parts))


def draw(setting: Setting, variation: Variation, n: int, seed: int) -> tuple[Array, Array, Array]:
    """Return truths, (n, n_parameters), series, (n, n_images), and the assumed noise, (n,)."""
    parts = [
        _draw_series(setting, variation, part.stop - part.start, np.random.default_rng([seed, k]))
        for k, part in enumerate(_series(n))
    ]
    truth, measured, noise_std = (np.concatenate(column) for column in zip(*parts, strict=True))
    return truth, measured, noise_std


def _series(n: int) -> list[slice]:
    """Return the slice of n voxels that belongs to each series."""
    ends = np.linspace(0, n, N_SERIES + 1).round().astype(int).tolist()
    return [slice(*pair) for pair in pairwise(ends)]


def _draw_series(setting: Setting, variation: Variation, n: int, rng: np.random.Generator) -> tuple[Array, ...]:
    truth = tissue(setting.model, n, rng)
    believed = setting.series
    actual = variation.protocol(believed, rng) if variation.protocol else believed
    clean = clean_series(setting.model, truth, actual, rng)
    is_rician = setting.kind == "rician"
    sigma = reference(torch.tensor(np.abs(clean) if is_rician else clean), believed) / setting.snr
    if variation.change:
        clean = variation.change(clean, actual, rng)
    clean = np.abs(clean) if is_rician else clean
    noise = Noise("rician" if is_rician or variation.rician else "gaussian", (setting.snr, setting.snr))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    measured = noise.add(torch.tensor(clean), variation.noise_factor * sigma, believed, generator).numpy()
    if variation.after:
        measured = variation.after(measured, believed, rng)
    return truth, variation.scale * measured, variation.scale * sigma.numpy().ravel()


def estimators_of(model: SignalModel, chosen: list[str] | None) -> list[str]:
    """Return the names of voxelwise estimators of a model, all if none are chosen.

    Raises
    ------
    UsageError
        If none of the chosen ones is voxelwise.
    """
    known = [key for key, kind in load_estimators().items() if kind.supports(model) and not kind.is_spatial]
    found = known if chosen is None else [name for name in chosen if get_estimator(name).name in known]
    if not found:
        raise UsageError(f"None of the estimators fits single voxels of model {model.name}.")
    return found


def evaluate(
    name: str,
    estimator: str,
    *,
    n: int = N_VOXELS_EACH,
    n_reference: int = N_VOXELS,
    seed: int = 0,
    report: Callable[[str], None] = lambda what: None,
) -> Iterator[tuple[str, dict[str, Rates] | None]]:
    """Yield variation and rates by parameter of one model and estimator.

    Learned estimators are trained on all plausible tissue. There are no rates (None) for variations with another
    protocol, which refuses their weights.

    Parameters
    ----------
    name : str
        Of the model.
    estimator : str
    n : int
        Voxels of each variation.
    n_reference : int
        Simulated voxels of the certificate.
    seed : int
    report : callable
        Called with the current step, for progress.
    """
    setting = settings(name, estimator)[-1]
    noise = Noise(setting.kind, (setting.snr, setting.snr))
    report(f"{name}, {estimator}: certificate")
    kind = get_estimator(estimator)
    make = partial(Instrument, noise=noise, n_reference=n_reference, seed=seed)
    usual = make(setting.fit(seed), setting.series)
    for k, (what, variation) in enumerate(variations_of(setting.model, setting.series).items()):
        report(f"{name}, {estimator}: {what}")
        truth, measured, noise_std = draw(setting, variation, n, seed + 1 + k)
        if variation.removed is None:
            yield what, usual.rates(truth, measured, noise_std)
        elif issubclass(kind, LearnedEstimator):
            yield what, None
        else:
            series, kept = without(setting.series, variation.removed)
            fitted = kind(get_model(name)).fit(setting.model.adapt(series)[0], seed=seed)
            yield what, make(fitted, series).rates(truth, measured[:, kept], noise_std)


def to_dict(rates: dict[str, Rates] | None) -> dict[str, dict[str, float]] | None:
    """Return plain data."""
    return None if rates is None else {name: asdict(part) for name, part in rates.items()}
