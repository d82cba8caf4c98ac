"""The certificate of an estimator: its errors in every tissue, for one protocol and noise level."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from qmri_bidsapp import formats
from qmri_bidsapp.artifacts.atomic import atomic_folder
from qmri_bidsapp.artifacts.weights import key_of
from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.prior import Prior
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import InputError, OutputError, PriorError, UsageError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.uncertainty.adjustments import conformal_factors, debiasing
from qmri_bidsapp.uncertainty.bins import MIN_PER_BIN, N_BINS, bins_of, moments
from qmri_bidsapp.uncertainty.identity import SPREAD, identity_of
from qmri_bidsapp.uncertainty.inverse import InverseReader, LocalErrors
from qmri_bidsapp.uncertainty.ood import OutOfDistribution
from qmri_bidsapp.uncertainty.ood_measures import measure
from qmri_bidsapp.uncertainty.simulation import Pairs, pairs_of, simulate_pairs, simulate_voxels
from qmri_bidsapp.uncertainty.sinks import MAX_DIMENSIONS, Sink, find_sinks
from qmri_bidsapp.uncertainty.space import Space, unit_box

Array = npt.NDArray[np.float64]

ARRAYS, SUMMARY = "certificate.npz", "certificate.json"
#: Simulated voxels of the prior, and of each named tissue.
N_VOXELS = 2**15
N_PER_TISSUE = 2000
#: Share of the simulated voxels that must be estimated.
LEAST_SHARE = 0.1
#: Bins of the truth along each of two parameters.
N_CELLS = 12


@dataclass(frozen=True)
class Certificate:
    """Truths and estimates of simulated voxels, and what follows from them.

    Attributes
    ----------
    model : SignalModel
    identity : dict
        Plain data: everything that the numbers depend on.
    pairs : Pairs
        Truths from the stated prior, noise from a range around the level of the series: for the inverse reading.
    survey : Pairs
        Truths from the model's default prior, all plausible tissue alike, at the noise level of the series: for bias,
        standard deviation and sinks over the parameter space.
    tissues : dict
        Named tissue -> its source, true values, and for every quantity mean and percentiles of its estimates.
    out_of_distribution : OutOfDistribution
        Detects voxels unlike the simulated ones of `pairs`.
    local : LocalErrors, optional
        Errors around the voxels of `pairs`, for the inverse reading; computed on first use if not given.
    """

    model: SignalModel
    identity: dict[str, Any]
    pairs: Pairs
    survey: Pairs
    tissues: dict[str, dict[str, Any]]
    out_of_distribution: OutOfDistribution
    local: LocalErrors | None = None

    def __repr__(self) -> str:
        snr, known = self.identity["noise"]["snr"][0], ", ".join(p.name for p in self.space.parameters)
        return f"<Certificate of {self.identity['estimator']} for {self.model.name} at SNR {snr:g}: {known}>"

    @cached_property
    def space(self) -> Space:
        """The quantities that are compared."""
        return Space(self.model)

    @cached_property
    def key(self) -> str:
        """Content hash of the identity."""
        return key_of(self.identity)

    @cached_property
    def reader(self) -> InverseReader:
        """Reads estimates back to truths, under the stated prior."""
        return InverseReader(self.space, self.pairs, self.local)

    def errors_by_bins(self, quantity: int, n_bins: int = N_BINS) -> dict[str, list[float | None]]:
        """Return bias, standard deviation and RMSE of one quantity over bins of its truth, in its unit.

        Parameters
        ----------
        quantity : int
            Position among the quantities of `space`; not the amplitude, whose truth is always one.
        n_bins : int
            Of equal width, in the logarithm where `Space` takes it; the outer ones hold all beyond.

        Returns
        -------
        dict
            ``truth``, the mean of each bin, ``bias``, ``std``, ``rmse``, ``n``; None where there are too few voxels.
        """
        truth, error = self.survey.truth[:, quantity], self._errors()[:, quantity]
        place = self.space.forward(self.survey.truth)[:, quantity : quantity + 1]
        index = bins_of(place, n_bins)[:, 0]
        rows = [moments(truth[index == k], error[index == k]) for k in range(n_bins)]
        return {name: [row[name] for row in rows] for name in ("truth", "bias", "std", "rmse", "n")}

    def arrows(self, n_cells: int = N_CELLS) -> list[dict[str, list[float]]] | None:
        """Return mean truth and mean estimate over cells of the space; None unless it has two axes.

        Each row has ``truth`` and ``estimate``, in the units of ``space.axes``.
        """
        axes = self.space.axes
        if len(axes) != 2:
            return None
        cell = bins_of(self.space.place(self.survey.truth), n_cells) @ [1, n_cells]
        rows = []
        for k in range(n_cells**2):
            inside = cell == k
            if inside.sum() >= MIN_PER_BIN:
                means = (values[inside][:, axes].mean(axis=0) for values in (self.survey.truth, self.survey.estimate))
                rows.append({name: mean.tolist() for name, mean in zip(("truth", "estimate"), means, strict=True)})
        return rows

    @cached_property
    def conformal(self) -> dict[str, float]:
        """Conformal intervals, see `adjustments.conformal_factors`."""
        return conformal_factors(self.space, self.pairs)

    @cached_property
    def debiasing(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Effect of subtracting the expected bias, see `adjustments.debiasing`."""
        return debiasing(self.space, self.survey, self.reader)

    @cached_property
    def sinks(self) -> list[Sink] | None:
        """Sinks, see `sinks`, in the units of ``space.axes``; None in more than `MAX_DIMENSIONS`."""
        if len(self.space.axes) > MAX_DIMENSIONS:
            return None
        truth, estimate = (self.space.place(values) for values in (self.survey.truth, self.survey.estimate))
        offset, size = unit_box(truth)
        found = find_sinks((truth - offset) / size, (estimate - offset) / size)
        return [self._in_units(sink, offset, size) for sink in found]

    def _in_units(self, sink: Sink, offset: Array, size: Array) -> Sink:
        def back(places: Any) -> Array:
            return self.space.back(np.asarray(places) * size + offset)

        extent, basin = (
            [(low, high) for low, high in back(np.array(part).T).T.tolist()] for part in (sink.extent, sink.basin)
        )
        return Sink(back([sink.centre])[0].tolist(), extent, basin, sink.share, sink.pull, sink.gathering)

    def _errors(self) -> Array:
        return self.survey.estimate.astype(np.float64) - self.survey.truth

    def summary(self) -> dict[str, Any]:
        """Return everything but the voxels as plain data, for the report."""
        quantities = self.space.parameters
        overall = self._errors()
        return {
            "format": formats.CERTIFICATE,
            "key": self.key,
            "identity": self.identity,
            "axes": [quantities[k].name for k in self.space.axes],
            "n_failed": self.survey.n_failed,
            "share_at_bound": float(self.survey.at_bound.mean()),
            "quantities": {
                p.name: {
                    "unit": "relative" if k == 0 else p.unit,
                    "description": p.description,
                    "is_scale": p.is_scale,
                    **moments(self.survey.truth[:, k], overall[:, k]),
                    "by_truth": self.errors_by_bins(k) if k else None,
                }
                for k, p in enumerate(quantities)
            },
            "arrows": self.arrows(),
            "conformal": self.conformal,
            "debiasing": {name: {key: list(pair) for key, pair in of.items()} for name, of in self.debiasing.items()},
            "sinks": None if self.sinks is None else [sink.to_dict() for sink in self.sinks],
            "tissues": self.tissues,
        }

    def save(self, folder: str | Path) -> None:
        """Write the voxels (.npz) and the summary (.json) into a new folder; it appears whole or not at all.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        folder = Path(folder)
        arrays = self.pairs.to_arrays("pairs_") | self.survey.to_arrays("survey_")
        arrays |= self.out_of_distribution.to_arrays("measures_")
        arrays |= {f"local_{name}": values for name, values in self.reader.local._asdict().items()}
        try:
            with atomic_folder(folder) as new:
                np.savez(new / ARRAYS, **arrays)  # type: ignore[arg-type]
                text = json.dumps(self.summary(), indent=1, sort_keys=True, allow_nan=False)
                (new / SUMMARY).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"The certificate cannot be written to {folder} ({error.strerror}).") from error

    @classmethod
    def load(cls, folder: str | Path, model: SignalModel) -> Self:
        """Return the certificate of `save`.

        Raises
        ------
        InputError
            If there is none, it is damaged, or of another model.
        """
        folder = Path(folder)
        try:
            summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
            with np.load(folder / ARRAYS, allow_pickle=False) as file:
                arrays = dict(file)
            identity, tissues, stored = summary["identity"], summary["tissues"], summary["format"]
            pairs, survey = (Pairs.from_arrays(arrays, prefix) for prefix in ("pairs_", "survey_"))
            known = OutOfDistribution.from_arrays(arrays, "measures_")
            local = LocalErrors(*(arrays[f"local_{name}"] for name in LocalErrors._fields))
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(f"{folder} holds no readable certificate ({type(error).__name__}): delete it.") from error
        if stored != formats.CERTIFICATE or identity["model"] != model.name or summary["key"] != key_of(identity):
            raise InputError(f"{folder} holds no certificate of model {model.name} in this format: delete it.")
        return cls(model, identity, pairs, survey, tissues, known, local)


def certify(
    estimator: Estimator,
    acquisition: Acquisition,
    *,
    noise: Noise,
    prior: Prior | None = None,
    n: int = N_VOXELS,
    seed: int = 0,
    noise_is_known: bool = True,
    covariates_are_known: bool = False,
) -> Certificate:
    """Simulate tissue, estimate its parameters, and keep truths and estimates.

    Parameters
    ----------
    estimator : Estimator
        Fitted to the protocol.
    acquisition : Acquisition
        The protocol, as the model uses it.
    noise : Noise
        At the level of the data, one finite signal-to-noise ratio.
    prior : Prior, optional
        Distribution of the truth, of all parameters but the amplitude; by default the model's default prior.
    n : int
        Voxels drawn from it, and as many from the default prior.
    seed : int
    noise_is_known : bool
        Whether the estimator is given the noise, as for series whose noise is measured.
    covariates_are_known : bool
        Whether there is a map of each covariate. They are then drawn from their bounds and given to the estimator;
        otherwise they vary by `simulation.UNMEASURED_SPREAD` around the neutral value, which the estimator assumes.

    Returns
    -------
    Certificate

    Raises
    ------
    UsageError
        If neighbouring voxels influence each other's estimates, so that single voxels do not show its errors; if the
        noise is a range, or none.
    PriorError
        If the prior is not of the model's parameters.
    InputError
        If hardly any voxel could be estimated.
    """
    model = estimator.model
    if estimator.is_spatial:
        raise UsageError(f"Estimator {estimator.name} works on images: it cannot be certified by single voxels.")
    level = noise.snr[0]
    if not noise.is_fixed or math.isinf(level):
        raise UsageError(f"A certificate is for one finite signal-to-noise ratio, got {noise.snr}.")
    stated = prior or model.default_prior()
    if stated.parameters != model.parameters[1:]:
        raise PriorError(f"The prior is not of the parameters of model {model.name}.")
    known = {"noise_is_known": noise_is_known, "covariates_are_known": covariates_are_known}

    def own_seed(part: int) -> int:
        # Not the streams that learned estimators are trained with at the same seed.
        return int(np.random.SeedSequence([seed, part]).generate_state(1)[0])

    def simulate(values: Array, noise: Noise, part: int) -> Pairs:
        return simulate_pairs(estimator, acquisition, values, noise, seed=own_seed(part), **known)

    rng = np.random.default_rng([seed, 0])
    around = replace(noise, snr=(level / SPREAD, level * SPREAD))
    voxels = simulate_voxels(
        estimator, acquisition, stated.draw(n, rng), around, seed=own_seed(1), by_volume=True, **known
    )
    pairs = pairs_of(model, acquisition, voxels)
    survey = simulate(model.default_prior().draw(n, rng), noise, 2)
    if min(len(pairs), len(survey)) < max(MIN_PER_BIN, LEAST_SHARE * n):
        raise InputError(f"{estimator.name} could not estimate {model.name} from simulated signals of this protocol.")
    tissues = {}
    for part, tissue in enumerate(model.tissues, start=3):
        values = np.array([[tissue.values.get(p.name, p.scale) for p in model.parameters[1:]]])
        found = simulate(np.repeat(values, N_PER_TISSUE, axis=0), noise, part)
        tissues[tissue.name] = {"source": tissue.source, **found.boxes(Space(model))}
    identity = identity_of(estimator, acquisition, prior=stated, noise=noise, n=n, seed=seed, **known)
    # As it will be read from a file.
    identity = json.loads(json.dumps(identity))
    is_uneven = any(p.is_scale for p in model.parameters[1:])
    measures = measure(estimator, acquisition, voxels)
    out_of_distribution = OutOfDistribution(measures, voxels.noise_std, is_uneven=is_uneven)
    return Certificate(model, identity, pairs, survey, tissues, out_of_distribution)
