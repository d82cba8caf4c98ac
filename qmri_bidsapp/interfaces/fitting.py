"""The node that fits a model to a series."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.interfaces.preprocess import defined

if TYPE_CHECKING:
    import nibabel as nib

    from qmri_bidsapp.core.maps import ParameterMaps
    from qmri_bidsapp.fitting.series import SeriesFit


class _FitInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="uncompressed 4-D series")
    in_mask = File(exists=True, mandatory=True)
    noise_std = File(exists=True, desc="3-D standard deviation of the noise of one raw measurement")
    errors = File(exists=True, desc="4-D errors of a replicate of a denoised series")
    removed = File(exists=True, desc="4-D noise that was removed from the replicate")
    is_resampled = traits.Bool(False, usedefault=True, desc="whether volumes were resampled after denoising")
    floor_removed = traits.Bool(False, usedefault=True, desc="whether the noise floor of the magnitudes was removed")
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
    with_evidence = traits.Bool(False, usedefault=True, desc="whether to record what the fit can be judged by")


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
    training = traits.Dict(desc="sidecar fields on the training of the estimator; empty without one")
    snr = traits.Float(desc="median signal-to-noise ratio of the series; 0 where it is unknown")
    noise_is_given = traits.Bool(desc="whether the noise of most voxels was known before the fit")
    floor_removed = traits.Bool(desc="whether the noise floor of the magnitudes was removed")
    evidence = File(exists=True, desc="`Evidence`, .npz")


class Fit(SimpleInterface):
    """Fit one model to one series with one estimator."""

    input_spec = _FitInputSpec
    output_spec = _FitOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import torch

        from qmri_bidsapp.fitting.series import make_estimator, provenance_of
        from qmri_bidsapp.images.volumes import load_image

        inputs, folder = self.inputs, Path(runtime.cwd)
        torch.set_num_threads(inputs.n_threads)
        mask_image = load_image(inputs.in_mask, ndim=3)
        start = time.perf_counter()
        estimator = make_estimator(
            inputs.model,
            inputs.estimator,
            device=inputs.device,
            weights=defined(inputs.weights),
            bundles_by_voxel=bool(defined(inputs.directions)),
        )
        fit = _fit(estimator, inputs, np.asarray(mask_image.dataobj) > 0)
        self._results.update(seconds=time.perf_counter() - start, counts=fit.maps.counts())
        self._results.update(_save_maps(fit.maps, mask_image, folder), training=provenance_of(estimator))
        if fit.evidence is not None:
            self._results["evidence"] = fit.evidence.save(folder / "evidence.npz")
            self._results.update({name: getattr(fit.evidence, name) for name in _EVIDENCE})
        return runtime


_EVIDENCE = ("snr", "noise_is_given", "floor_removed")


def _fit(estimator: Any, inputs: Any, mask: Any) -> SeriesFit:
    """Load what a fit takes, and fit."""
    from qmri_bidsapp.fitting.noise import SeriesNoise
    from qmri_bidsapp.fitting.replicate import Replicate
    from qmri_bidsapp.fitting.series import fit_series
    from qmri_bidsapp.images.volumes import open_series

    acquisition = dict(inputs.acquisition)
    if defined(inputs.direction):
        acquisition["direction"] = inputs.direction
    protocol = Acquisition.from_dict(acquisition)
    data, spacing = open_series(inputs.in_file)
    measured, directions, errors = (defined(getattr(inputs, name)) for name in ("noise_std", "directions", "errors"))
    return fit_series(
        estimator,
        data,
        mask,
        protocol,
        noise=SeriesNoise.of_series(
            data, mask, protocol, measured=_load(measured) if measured else None, floor_removed=inputs.floor_removed
        ),
        covariates=[_load(name) for name in defined(inputs.covariates) or ()],
        directions=_load_directions(directions) if directions else None,
        replicate=Replicate(open_series(errors)[0], open_series(inputs.removed)[0], inputs.is_resampled)
        if errors
        else None,
        spacing=spacing,
        seed=inputs.seed,
        with_evidence=inputs.with_evidence,
    )


def _load(name: str) -> Any:
    from qmri_bidsapp.images.volumes import load_image

    return np.asarray(load_image(name, ndim=3).dataobj)


def _load_directions(name: str) -> Any:
    """Return (x, y, z, 3, 3) vectors; whole volumes may be NaN where no voxel has that many fibres."""
    import nibabel as nib

    values = np.asarray(nib.load(name).dataobj, dtype=np.float32)
    return values.reshape(*values.shape[:3], 3, 3)


def _save_maps(maps: ParameterMaps, mask_image: nib.Nifti1Image, folder: Path) -> dict[str, Any]:
    """Write the maps of a fit that are saved into a folder, with the geometry of the mask."""
    from qmri_bidsapp.core.maps import Status
    from qmri_bidsapp.images.volumes import save_columns

    saved = [i for i, parameter in enumerate(maps.parameters) if parameter.saved]

    def save(values: Any, ending: str) -> list[str]:
        names = [f"{maps.parameters[i].name}{ending}" for i in saved]
        return [] if values is None else save_columns(values[:, saved], names, mask_image, folder)

    posterior = [*save(maps.lower, "_low"), *save(maps.upper, "_high")]
    if maps.log_evidence is not None:
        posterior += save_columns(maps.log_evidence[:, None], ["log_evidence"], mask_image, folder)
    return {
        "estimates": save(maps.estimate, ""),
        "stds": save(maps.std, "_std"),
        "posterior": posterior,
        "status": save_columns(maps.status[:, None], ["status"], mask_image, folder, Status.OUTSIDE)[0],
    }
