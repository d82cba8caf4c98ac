"""Fit a series: chunk by chunk, with the noise that it has, and with standard deviations from all of its voxels."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion
from qmri_bidsapp.core.maps import ParameterMaps
from qmri_bidsapp.core.prior import Prior
from qmri_bidsapp.errors import InputError, UsageError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.learned.base import LearnedEstimator
from qmri_bidsapp.estimators.likelihood.bundles import BundlesByVoxel
from qmri_bidsapp.estimators.trained import TrainedEstimator
from qmri_bidsapp.fitting.evidence import Evidence, EvidenceCollector
from qmri_bidsapp.fitting.noise import SeriesNoise
from qmri_bidsapp.fitting.replicate import Replicate, error_factors, rescale, scatter_of_resampling
from qmri_bidsapp.images.volumes import VolumeData, iter_voxels
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.registry import get_estimator, get_model
from qmri_bidsapp.uncertainty.moderation import moderate
from qmri_bidsapp.uncertainty.ood_measures import Measures, Meter

#: Voxels that are read and fitted at once: many enough for vectorised estimators, a few MB at 100 measurements.
CHUNK_SIZE = 32_768
#: Arguments of estimators that are not options: they have parameters of their own in `make_estimator`.
_NOT_OPTIONS = ("self", "model", "device", "weights", "prior", "kind")


@dataclass(frozen=True)
class SeriesFit:
    """Result of `fit_series`.

    Attributes
    ----------
    maps : ParameterMaps
        Of the masked voxels, in C order; standard deviations are those of the series, see `uncertainty.moderation`.
    evidence : Evidence or None
        What the fit is judged by; None if it was not asked for, or for estimators in which neighbours influence each
        other.
    """

    maps: ParameterMaps
    evidence: Evidence | None


def make_estimator(
    model: str | SignalModel,
    estimator: str | type[Estimator],
    *,
    device: str = "cpu",
    weights: str | Path | None = None,
    prior: Prior | None = None,
    bundles_by_voxel: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Estimator:
    """Make an estimator, not yet fitted to a protocol.

    Parameters
    ----------
    model, estimator
        Registered names, or a model and a class of estimators.
    device : str
        Torch device.
    weights : path, optional
        Folder with the weights of a trained estimator, or of such folders.
    prior : Prior, optional
        Training distribution of a learned estimator.
    bundles_by_voxel : bool
        Whether every voxel has a number of fibre bundles of its own.
    options : mapping, optional
        Options of this estimator; see `options_of`.

    Raises
    ------
    UsageError
        If a name is unknown, the estimator does not support the model, or it has no such option.
    """
    own = get_model(model) if isinstance(model, str) else model
    kind = get_estimator(estimator) if isinstance(estimator, str) else estimator
    given = dict(options or {})
    unknown = sorted(set(given) - set(options_of(kind)))
    if unknown:
        known = ", ".join(options_of(kind)) or "it has none"
        raise UsageError(f"Estimator {kind.name} has no option {', '.join(unknown)}; options: {known}.")
    if not kind.supports(own):
        raise UsageError(f"Estimator {kind.name} cannot be used with model {own.name}; see `qmri models`.")
    if bundles_by_voxel:
        return BundlesByVoxel(own, kind, device=device, options=given)  # type: ignore[arg-type]
    if weights is not None and issubclass(kind, TrainedEstimator):
        given["weights"] = weights
    if prior is not None and issubclass(kind, LearnedEstimator):
        given["prior"] = prior
    return kind(own, device=device, **given)


def options_of(estimator: type[Estimator]) -> list[str]:
    """Return the names of the options of an estimator: the keyword arguments of its constructor.

    Those that the constructor passes on to that of a base class, as ``**common``, are options as well.
    """
    names: list[str] = []
    for kind in estimator.__mro__:
        if "__init__" not in vars(kind):
            continue
        parameters = inspect.signature(vars(kind)["__init__"]).parameters.values()
        own = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        names += [name for name in own if name not in (*_NOT_OPTIONS, *names)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def provenance_of(estimator: Estimator) -> dict[str, str]:
    """Return sidecar fields on the training of a fitted estimator; empty if it was not trained."""
    if not isinstance(estimator, TrainedEstimator):
        return {}
    fields = {"EstimatorTraining": estimator.provenance(), "EstimatorWeightsSHA256": estimator.sha256_}
    return {key: value for key, value in fields.items() if value is not None}


def fit_series(
    estimator: Estimator,
    data: VolumeData,
    mask: npt.NDArray[np.bool_],
    acquisition: Acquisition,
    *,
    noise: SeriesNoise | None = None,
    covariates: Sequence[npt.NDArray[np.float32]] = (),
    directions: npt.NDArray[np.float32] | None = None,
    replicate: Replicate | None = None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    seed: int = 0,
    with_evidence: bool = False,
) -> SeriesFit:
    """Fit a series chunk by chunk, so that memory does not grow with the number of measurements.

    Estimators in which neighbours influence each other are given all masked voxels at once.

    Parameters
    ----------
    estimator : Estimator
        It is fitted to the protocol here.
    data : array_like
        (x, y, z, n_measurements), see `images.volumes.open_series`.
    mask : ndarray
        (x, y, z) bool.
    acquisition : Acquisition
        Protocol of the series as acquired.
    noise : SeriesNoise, optional
        See `SeriesNoise.of_series`, which determines it from the series where it is not given.
    covariates : sequence of ndarray
        (x, y, z) map of each covariate of the model, in its order; empty for neutral values.
    directions : ndarray, optional
        (x, y, z, 3, 3) of the fibres, for `BundlesByVoxel`.
    replicate : Replicate, optional
        Of a denoised series. It is fitted as well, and standard deviations are those of the differences, see
        `fitting.replicate`. Not for estimators in which neighbours influence each other.
    spacing : sequence of float
        Voxel size along x, y and z, mm.
    seed : int
        Passed to the estimator.
    with_evidence : bool
        Whether to record what the fit can be judged by.

    Raises
    ------
    ProtocolError
        If the protocol cannot identify the model's parameters.
    InputError
        If the mask is empty, the number of images does not fit the protocol, or a covariate has another shape.
    """
    if not mask.any():
        raise InputError("The mask is empty: there is no voxel to fit; give a mask with values above zero.")
    if data.shape[3] != acquisition.n_measurements:
        raise InputError(
            f"The series has {data.shape[3]} images, but the protocol {acquisition.n_measurements}: "
            "it needs one value per image, in the same order."
        )
    for values in covariates:
        if values.shape != mask.shape:
            raise InputError(f"A covariate has shape {values.shape}, but the series has {mask.shape}: resample it.")
    protocol, matrix = estimator.model.adapt(acquisition)
    estimator.fit(protocol, seed=seed)
    noise = noise or SeriesNoise.of_series(data, mask, acquisition)
    known = np.stack([values[mask] for values in covariates], axis=-1) if covariates else None
    if estimator.is_spatial:
        signals = np.empty((int(mask.sum()), protocol.n_measurements), dtype=np.float32)
        for index, series in iter_voxels(data, mask, CHUNK_SIZE):
            signals[index] = _adapted(series, matrix)
        return SeriesFit(
            estimator.predict_volume(signals, mask, spacing=spacing, noise_std=noise.std, covariates=known), None
        )
    collector = EvidenceCollector(estimator, acquisition, mask, noise) if with_evidence else None
    toward = None if directions is None else directions[mask]

    def estimate(index: npt.NDArray[np.intp], signals: npt.NDArray[np.float32]) -> ParameterMaps:
        options: dict[str, Any] = {} if toward is None else {"directions": toward[index]}
        if known is not None:
            options["covariates"] = known[index]
        return estimator.predict(signals, noise_std=None if noise.std is None else noise.std[index], **options)

    maps, repeated = (_allocate(estimator, int(mask.sum())) for _ in range(2))
    extra_series = () if replicate is None else (replicate.errors, replicate.removed)
    chunks = (iter_voxels(volumes, mask, CHUNK_SIZE) for volumes in (data, *extra_series))
    for (index, series), *extra in zip(*chunks, strict=True):
        signals = _adapted(series, matrix)
        part = estimate(index, signals)
        maps.fill(index, part)
        white = signals
        if replicate is not None:
            errors, removed = (values for _, values in extra)
            repeated.fill(index, estimate(index, _adapted(series + errors, matrix)))
            white = _adapted(series + removed, matrix)
        if collector is not None:
            collector.add(index, series, signals, part, None if known is None else known[index], white=white)
    maps = moderate(maps, estimator.model, protocol)
    evidence = None if collector is None else collector.finish()
    if replicate is not None:
        factor = error_factors(maps, repeated, mask)
        if replicate.is_resampled and isinstance(acquisition, Diffusion) and noise.std is not None:
            scatter = scatter_of_resampling(data, replicate, mask, acquisition)
            if scatter is not None:
                factor = np.sqrt(np.square(factor) + (scatter / np.square(noise.std))[:, None]).astype(np.float32)
        maps = rescale(maps, factor)
        evidence = None if evidence is None else replace(evidence, error_factor=factor)
    return SeriesFit(maps, evidence)


def fit_voxels(
    estimator: Estimator,
    acquisition: Acquisition,
    series: npt.NDArray[np.floating],
    noise_std: npt.NDArray[np.floating],
    *,
    noise_is_known: bool = True,
) -> tuple[ParameterMaps, Measures]:
    """Fit voxels of one series that form no image, such as simulated ones, as `fit_series` fits those of an image.

    Parameters
    ----------
    estimator : Estimator
        Fitted to the protocol.
    acquisition : Acquisition
        Protocol as acquired.
    series : ndarray
        (n_voxels, n_images).
    noise_std : ndarray
        (n_voxels,) standard deviation of the noise of one raw measurement.
    noise_is_known : bool
        Whether the estimator is given `noise_std`; otherwise it only states the unit of each voxel.
    """
    protocol, matrix = estimator.model.adapt(acquisition)
    signals = series if matrix is None else series @ matrix
    maps = estimator.predict(signals, noise_std=noise_std if noise_is_known else None)
    maps = moderate(maps, estimator.model, protocol, noise_std=noise_std)
    return maps, Meter(estimator, protocol, acquisition).measure(signals, maps, series=series)


def _adapted(series: npt.NDArray[np.float32], matrix: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float32]:
    """Return the (n, n_measurements) signals that a model uses of (n, n_images) of a series."""
    return series if matrix is None else series @ matrix.astype(np.float32)


def _allocate(estimator: Estimator, n_voxels: int) -> ParameterMaps:
    """Return maps of that many voxels, to be filled."""
    parameters = (*estimator.model.parameters, *estimator.model.derived)
    estimate, std, lower, upper = (np.empty((n_voxels, len(parameters)), dtype=np.float32) for _ in range(4))
    maps = ParameterMaps(parameters, estimate, std, estimator.std_kind, np.empty(n_voxels, dtype=np.uint8))
    if estimator.std_from_residuals:
        maps = replace(maps, variance=np.empty(n_voxels, dtype=np.float32))
    if not estimator.has_posterior:
        return maps
    return replace(maps, lower=lower, upper=upper, log_evidence=np.empty(n_voxels, dtype=np.float32))
