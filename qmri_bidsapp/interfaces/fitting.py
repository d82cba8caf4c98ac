"""The node that fits a model to a series, and the function behind it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from qmri_bidsapp.core.acquisition import B0_THRESHOLD, Acquisition, Diffusion
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.fitting.noise_level import NoiseLevel
from qmri_bidsapp.interfaces.preprocess import defined
from qmri_bidsapp.registry import get_estimator, get_model
from qmri_bidsapp.uncertainty.moderation import moderate

if TYPE_CHECKING:
    import nibabel as nib

    from qmri_bidsapp.uncertainty.ood_measures import Measures

#: Raised when the same inputs give other maps than before: a work folder of an earlier state is then fitted anew.
FORMAT = 2
#: Voxels that are read and fitted at a time: large enough for vectorised estimators, a few MB at 100 measurements.
CHUNK_SIZE = 32_768
#: Volumes whose b-values differ by no more (s/mm2) are repeats of each other.
REPEAT_TOLERANCE = 5.0
#: Fewer b0 volumes say too little of the noise.
MIN_REPEATS = 4


def fit_volume(
    estimator: Estimator,
    image_file: str | Path,
    mask: npt.NDArray[np.bool_],
    acquisition: Acquisition,
    *,
    noise_std: npt.NDArray[np.float32] | None = None,
    covariates: Sequence[npt.NDArray[np.float32]] = (),
    directions: npt.NDArray[np.float32] | None = None,
    seed: int = 0,
    witness: Witness | None = None,
) -> ParameterMaps:
    """Fit a series chunk by chunk, so that memory does not grow with the number of measurements.

    Estimators in which neighbours influence each other get all masked voxels at once.

    Parameters
    ----------
    estimator : Estimator
        Not yet fitted to the protocol.
    image_file : path
        Uncompressed 4-D image (x, y, z, n_measurements).
    mask : ndarray
        (x, y, z) bool.
    acquisition : Acquisition
        Protocol of the series, as it was acquired.
    noise_std : ndarray, optional
        (x, y, z) standard deviation of the noise of one measurement, in the unit of the image; NaN or zero where it
        is not known: there it comes from repeated b0 volumes, or standard deviations are NaN.
    covariates : sequence of ndarray
        (x, y, z) map of each covariate of the model, in its order; empty for neutral values.
    directions : ndarray, optional
        (x, y, z, 3, 3) of the fibres, for `BundlesByVoxel`.
    seed : int
        Passed to the estimator.
    witness : Witness, optional
        Sees all voxels, unless neighbours influence each other.

    Returns
    -------
    ParameterMaps
        Of the masked voxels, in C order.

    Raises
    ------
    ProtocolError
        If the protocol cannot identify the model's parameters.
    InputError
        If the mask is empty, or a covariate has another shape.
    """
    from qmri_bidsapp.images.volumes import iter_voxels

    if not mask.any():
        raise InputError(f"The brain mask of {Path(image_file).name} is empty: there is no voxel to fit.")
    for values in covariates:
        if values.shape != mask.shape:
            raise InputError(f"A covariate has shape {values.shape}, but {image_file} has {mask.shape}: resample it.")
    protocol, matrix = estimator.model.adapt(acquisition)
    estimator.fit(protocol, seed=seed)
    masked_noise = _noise(image_file, mask, acquisition, noise_std)
    known = np.stack([values[mask] for values in covariates], axis=-1) if covariates else None
    toward = None if directions is None else directions[mask]
    if estimator.is_spatial:
        return _fit_whole(
            estimator, image_file, mask, matrix, protocol.n_measurements, noise_std=masked_noise, covariates=known
        )
    maps = _allocate(estimator, int(mask.sum()))
    for index, signals in iter_voxels(image_file, mask, CHUNK_SIZE):
        values = signals if matrix is None else signals @ matrix.astype(np.float32)
        noise = None if masked_noise is None else masked_noise[index]
        options: dict[str, Any] = {} if toward is None else {"directions": toward[index]}
        if known is not None:
            options["covariates"] = known[index]
        part = estimator.predict(values, noise_std=noise, **options)
        if witness is not None:
            witness.see(index, signals, values, part, noise, options.get("covariates"))
        maps.fill(index, part)
    return moderate(maps, estimator.model, protocol)


def _fit_whole(
    estimator: Estimator,
    image_file: str | Path,
    mask: npt.NDArray[np.bool_],
    matrix: npt.NDArray[np.float64] | None,
    n_measurements: int,
    *,
    noise_std: npt.NDArray[np.float32] | None,
    covariates: npt.NDArray[np.float32] | None,
) -> ParameterMaps:
    """Fit all voxels of the mask at once, for estimators in which neighbours influence each other."""
    import nibabel as nib

    from qmri_bidsapp.images.volumes import iter_voxels

    values = np.empty((int(mask.sum()), n_measurements), dtype=np.float32)
    for index, signals in iter_voxels(image_file, mask, CHUNK_SIZE):
        values[index] = signals if matrix is None else signals @ matrix.astype(np.float32)
    spacing = [float(size) for size in nib.load(image_file).header.get_zooms()[:3]]
    return estimator.predict_volume(values, mask, spacing=spacing, noise_std=noise_std, covariates=covariates)


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


def _noise(
    image_file: str | Path,
    mask: npt.NDArray[np.bool_],
    acquisition: Acquisition,
    given: npt.NDArray[np.float32] | None,
) -> npt.NDArray[np.float32] | None:
    """Return (n_voxels,) standard deviations: those given, elsewhere of the repeated b0 volumes where there are enough.

    Only volumes of (nearly) the lowest b-value count: perfusion makes the signal fall within `B0_THRESHOLD`.

    A powder average leaves few residuals, too few to tell the noise from; repeats do.
    """
    from qmri_bidsapp.images.noise import noise_of_repeats

    known = None if given is None else given[mask]
    if not isinstance(acquisition, Diffusion):
        return known
    repeats = acquisition.shells(REPEAT_TOLERANCE)[0]
    if len(repeats) < MIN_REPEATS or acquisition.b_value[repeats[0]] > B0_THRESHOLD:
        return known
    if known is not None and (known > 0).all():
        return known
    found = noise_of_repeats(image_file, mask, repeats)
    return found if known is None else np.where(known > 0, known, found)


class Witness:
    """Sees the voxels of a series as they are fitted, and keeps what tells how far the fit can be trusted.

    Parameters
    ----------
    estimator : Estimator
    acquisition : Acquisition
        Protocol of the series, as it was acquired.
    mask : ndarray
        (x, y, z) bool.
    """

    def __init__(self, estimator: Estimator, acquisition: Acquisition, mask: npt.NDArray[np.bool_]) -> None:
        from qmri_bidsapp.uncertainty.ood_measures import Meter

        protocol, _ = estimator.model.adapt(acquisition)
        self.level = NoiseLevel(estimator.model, protocol, mask)
        self._meter = Meter(estimator, protocol, acquisition)
        self._n_voxels = int(mask.sum())
        self._measures: Measures | None = None

    def see(
        self,
        index: npt.NDArray[np.intp],
        series: npt.NDArray[np.float32],
        signals: npt.NDArray[np.float32],
        maps: ParameterMaps,
        noise_std: npt.NDArray[np.float32] | None,
        covariates: npt.NDArray[np.float32] | None,
    ) -> None:
        """Take the voxels of a chunk: as they were measured, as the estimator had them, and what it made of them."""
        self.level.add(index, signals, noise_std, covariates)
        part = self._meter.measure(signals, maps, series=series, covariates=covariates)
        if self._measures is None:
            self._measures = part.empty(self._n_voxels)
        self._measures.fill(index, part)

    @property
    def measures(self) -> Measures:
        """Measures of all voxels, in C order of the mask."""
        assert self._measures is not None, "no voxel was seen"
        return self._measures


class _FitInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="uncompressed 4-D series")
    in_mask = File(exists=True, mandatory=True)
    noise_std = File(exists=True, desc="3-D standard deviation of the noise of one measurement")
    covariates = InputMultiObject(
        File(exists=True), desc="3-D map of each covariate of the model, in its order, on the grid of the series"
    )
    directions = File(exists=True, desc="4-D fibre directions: as many bundles are fitted in each voxel")
    acquisition = traits.Dict(mandatory=True, desc="Acquisition.to_dict()")
    direction = traits.List(desc="diffusion directions after alignment, in place of those of the acquisition")
    model = traits.Str(mandatory=True)
    estimator = traits.Str(mandatory=True)
    seed = traits.Int(0, usedefault=True)
    device = traits.Str("cpu", usedefault=True, nohash=True)
    weights = traits.Directory(desc="weights of a trained estimator, or folder of such")
    weights_digest = traits.Str(desc="content hash of a folder that the user named: other weights, other maps")
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)
    n_threads = traits.Int(1, usedefault=True, nohash=True)
    format = traits.Int(FORMAT, usedefault=True, desc="of the fit; another one, another hash")
    with_evidence = traits.Bool(False, usedefault=True, desc="whether to keep what tells how far to trust it")


class _FitOutputSpec(TraitedSpec):
    estimates = traits.List(File(exists=True), desc="one map per parameter")
    stds = traits.List(File(exists=True), desc="one standard-deviation map per parameter")
    posterior = traits.List(
        File(exists=True),
        desc="lower limits, then upper limits of the intervals, then the log evidence; empty without a posterior",
    )
    status = File(exists=True)
    counts = traits.Dict(desc="voxels per status")
    seconds = traits.Float(desc="time that the fit took")
    training = traits.Dict(desc="what is to be told of the training of an estimator, for sidecars; empty without one")
    snr = traits.Float(desc="median signal-to-noise ratio of the series; 0 where it is not known")
    snr_map = File(exists=True, desc="signal-to-noise ratio of each voxel, NaN where it is not known")
    measures = File(exists=True, desc="`Measures` of each voxel, .npz")
    noise_is_given = traits.Bool(desc="whether the noise of most voxels was known before the fit")
    floor_is_removed = traits.Bool(desc="whether the bias of magnitudes was taken away, with the noise that was given")


class Fit(SimpleInterface):
    """Fit one model to one series with one estimator."""

    input_spec = _FitInputSpec
    output_spec = _FitOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import torch

        from qmri_bidsapp.images.volumes import load_image

        torch.set_num_threads(self.inputs.n_threads)
        acquisition = dict(self.inputs.acquisition)
        if defined(self.inputs.direction):
            acquisition["direction"] = self.inputs.direction
        noise_file = defined(self.inputs.noise_std)
        directions_file = defined(self.inputs.directions)
        mask_image = load_image(self.inputs.in_mask, ndim=3)
        mask = np.asarray(mask_image.dataobj) > 0
        start = time.perf_counter()
        estimator = self._estimator(by_voxel=bool(directions_file))
        protocol = Acquisition.from_dict(acquisition)
        witness = Witness(estimator, protocol, mask) if self.inputs.with_evidence else None
        maps = fit_volume(
            estimator,
            self.inputs.in_file,
            mask,
            protocol,
            noise_std=np.asarray(load_image(noise_file, ndim=3).dataobj) if noise_file else None,
            covariates=[np.asarray(load_image(name, ndim=3).dataobj) for name in defined(self.inputs.covariates) or ()],
            directions=_load_directions(directions_file) if directions_file else None,
            seed=self.inputs.seed,
            witness=witness,
        )
        self._results["seconds"] = time.perf_counter() - start
        self._results["counts"] = maps.counts()
        self._results["training"] = _training_of(estimator)
        self._results.update(_save_maps(maps, mask_image, Path(runtime.cwd)))
        if witness is not None:
            self._results.update(_save_evidence(witness, mask_image, Path(runtime.cwd)))
            self._results["floor_is_removed"] = bool(noise_file)
        return runtime

    def _estimator(self, *, by_voxel: bool) -> Estimator:
        """Return the estimator; with a number of bundles of its own in every voxel, or with that of the model."""
        from qmri_bidsapp.estimators.likelihood.bundles import BundlesByVoxel

        inputs = self.inputs
        if by_voxel:
            kind = get_estimator(inputs.estimator)
            return BundlesByVoxel(get_model(inputs.model), kind, device=inputs.device)  # type: ignore[arg-type]
        return make_estimator(inputs.model, inputs.estimator, inputs.device, defined(inputs.weights) or None)


def make_estimator(model: str, estimator: str, device: str, weights: str | None) -> Estimator:
    """Return an estimator, not yet fitted to a protocol, that takes its weights, if it has any, from a folder."""
    from qmri_bidsapp.estimators.trained import TrainedEstimator

    kind = get_estimator(estimator)
    if issubclass(kind, TrainedEstimator):
        return kind(get_model(model), device=device, weights=weights)
    return kind(get_model(model), device=device)


def _training_of(estimator: Estimator) -> dict[str, str]:
    """Return the fields of sidecars that tell what a fitted estimator was trained on."""
    from qmri_bidsapp.estimators.trained import TrainedEstimator

    if not isinstance(estimator, TrainedEstimator):
        return {}
    fields = {"EstimatorTraining": estimator.provenance(), "EstimatorWeightsSHA256": estimator.sha256_}
    return {key: value for key, value in fields.items() if value is not None}


def _load_directions(name: str) -> npt.NDArray[np.float32]:
    """Return (x, y, z, 3, 3) vectors; whole volumes may be undefined where no voxel has that many fibres."""
    import nibabel as nib

    values = np.asarray(nib.load(name).dataobj, dtype=np.float32)
    return values.reshape(*values.shape[:3], 3, 3)


def _save_evidence(witness: Witness, mask_image: nib.Nifti1Image, folder: Path) -> dict[str, Any]:
    """Write the signal-to-noise ratios and measures of voxels; return all that is known of the noise."""
    from qmri_bidsapp.images.volumes import fill, make_image, save_image

    level = witness.level
    np.savez(folder / "measures.npz", **witness.measures.to_arrays())  # type: ignore[arg-type]
    values = fill(level.by_voxel, np.asarray(mask_image.dataobj) > 0, np.nan)
    return {
        "snr": level.snr or 0.0,
        "noise_is_given": level.is_given,
        "measures": str(folder / "measures.npz"),
        "snr_map": str(save_image(make_image(values, mask_image), folder / "snr.nii")),
    }


def _save_maps(maps: ParameterMaps, mask_image: nib.Nifti1Image, folder: Path) -> dict[str, Any]:
    """Write the maps of a fit that are to be saved into a folder, with the geometry of the mask."""
    from qmri_bidsapp.images.volumes import fill, make_image, save_image

    mask = np.asarray(mask_image.dataobj) > 0

    def save(values: npt.NDArray[Any], background: float, name: str) -> str:
        return str(save_image(make_image(fill(values, mask, background), mask_image), folder / name))

    def save_columns(values: npt.NDArray[np.float32] | None, ending: str) -> list[str]:
        if values is None:
            return []
        saved = [(i, p.name) for i, p in enumerate(maps.parameters) if p.saved]
        return [save(values[:, i], np.nan, f"{name}{ending}.nii") for i, name in saved]

    posterior = [*save_columns(maps.lower, "_low"), *save_columns(maps.upper, "_high")]
    if maps.log_evidence is not None:
        posterior.append(save(maps.log_evidence, np.nan, "log_evidence.nii"))
    return {
        "estimates": save_columns(maps.estimate, ""),
        "stds": save_columns(maps.std, "_std"),
        "posterior": posterior,
        "status": save(maps.status, Status.OUTSIDE, "status.nii"),
    }
