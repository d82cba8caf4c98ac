"""The Python face of the program: fit a series, certify an estimator, score the motion of a T1w."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.fitting import inputs
from qmri_bidsapp.fitting.choice import AUTO
from qmri_bidsapp.fitting.maps import Maps
from qmri_bidsapp.fitting.noise import SeriesNoise
from qmri_bidsapp.fitting.once import noise_level_of
from qmri_bidsapp.fitting.series import fit_series
from qmri_bidsapp.images.volumes import as_volume
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.uncertainty.certificate import Certificate
from qmri_bidsapp.uncertainty.certificate import certify as certify_estimator

if TYPE_CHECKING:
    from qmri_bidsapp.motion.scorer import MotionScore

__all__ = ["Maps", "certify", "fit", "score_motion"]

Image = Any  # array, nibabel image or file name
Times = Sequence[float]


def fit(
    model: str | SignalModel,
    series: Image | Sequence[Image],
    *,
    mask: Image | None = None,
    acquisition: Acquisition | None = None,
    echo_time: Times | None = None,
    inversion_time: Times | None = None,
    flip_angle: Times | None = None,
    repetition_time: Times | None = None,
    mt_pulse: Sequence[bool] | None = None,
    preparation_time: Times | None = None,
    signed: bool | None = None,
    bvals: Any = None,
    bvecs: Any = None,
    small_delta: float | None = None,
    large_delta: float | None = None,
    estimator: str | type[Estimator] | Estimator = AUTO,
    options: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    noise_std: Image | float | None = None,
    floor_removed: bool = False,
    covariates: Mapping[str, Image] | None = None,
    device: str = "cpu",
    seed: int = 0,
    cache: str | Path | None = None,
) -> Maps:
    """Fit a model to a series, as the BIDS App does after preprocessing.

    Parameters
    ----------
    model : str or SignalModel
        Name, see ``qmri models``, or an instance.
    series : array_like, nibabel image, file name, or sequence of 3-D ones
        (x, y, z, n_images), or one (x, y, z) image per echo, inversion time or flip angle.
    mask : array_like, nibabel image or file name, optional
        (x, y, z); voxels above zero are fitted. Without it all voxels whose values are finite and not all zero.
    acquisition : Acquisition, optional
        Protocol; or give its settings as in the next parameters.
    echo_time, inversion_time, repetition_time, preparation_time : sequence of float, optional
        (n_images,) s.
    flip_angle : sequence of float, optional
        (n_images,) degree.
    mt_pulse : sequence of bool, optional
        (n_images,) whether a magnetization transfer pulse was on.
    signed : bool, optional
        Whether inversion-recovery images have their sign; magnitudes otherwise.
    bvals, bvecs : array_like or file name, optional
        (n_images,) s/mm2, and (n_images, 3) or (3, n_images) unit vectors in FSL's convention.
    small_delta, large_delta : float, optional
        Gradient pulse duration and separation, s.
    estimator : str, class or Estimator
        Name, class, or an instance with its options; ``"auto"``: the one that the app uses.
    options : mapping, optional
        Options of an estimator that is given by name or class.
    weights : path, optional
        Weights of a trained estimator; without them a learned one is trained now.
    noise_std : float, array_like, nibabel image or file name, optional
        Standard deviation of the noise of one image, (x, y, z) or one value, in the unit of the images.
    floor_removed : bool
        Whether the images were denoised and their noise floor removed, as the app does with diffusion series.
    covariates : mapping, optional
        Name -> (x, y, z) map of a covariate of the model, e.g. ``{"b1": ...}``, the relative transmit field.
    device : str
        Torch device.
    seed : int
        Seed of the estimator.
    cache : path, optional
        Folder in which certificates are kept for later fits of the same protocol.

    Returns
    -------
    Maps

    Raises
    ------
    UsageError
        If a name or option is unknown, or settings of the protocol are missing or do not belong to the model.
    InputError
        If images cannot be used, or their number or shape does not fit the protocol.
    """
    own = inputs.model_of(model)
    settings = {name: value for name, value in locals().items() if name in _SETTINGS and value is not None}
    protocol = inputs.acquisition_of(own, acquisition, settings)
    fitter = inputs.estimator_of(own, estimator, device=device, weights=weights, options=options)
    data, affine = inputs.series_of(series)
    shape = data.shape[:3]
    if mask is None:
        inside = np.isfinite(data).all(-1) & (data != 0).any(-1)
    else:
        inside = inputs.volume_of("The mask", mask, shape, affine) > 0
    measured = inputs.noise_of(noise_std, shape, affine)
    known = inputs.covariates_of(own, covariates, inside, affine)
    found = fit_series(
        fitter,
        data,
        inside,
        protocol,
        noise=SeriesNoise.of_series(data, inside, protocol, measured=measured, floor_removed=floor_removed),
        covariates=known,
        spacing=np.linalg.norm(affine[:3, :3], axis=0).tolist(),
        seed=inputs.check_seed(seed),
        with_evidence=True,
    )
    by_voxel = np.stack([values[inside] for values in known], axis=-1) if known else None
    return Maps(fitter, protocol, inside, affine, found, by_voxel, Path(cache) if cache is not None else None)


def certify(
    model: str | SignalModel,
    *,
    snr: float,
    acquisition: Acquisition | None = None,
    echo_time: Times | None = None,
    inversion_time: Times | None = None,
    flip_angle: Times | None = None,
    repetition_time: Times | None = None,
    mt_pulse: Sequence[bool] | None = None,
    preparation_time: Times | None = None,
    signed: bool | None = None,
    bvals: Any = None,
    bvecs: Any = None,
    small_delta: float | None = None,
    large_delta: float | None = None,
    estimator: str | type[Estimator] | Estimator = AUTO,
    options: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    noise_is_known: bool | None = None,
    floor_removed: bool | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Certificate:
    """Simulate how an estimator errs on a protocol, before or without any data.

    Parameters
    ----------
    model, acquisition, echo_time, ..., estimator, options, weights, device, seed
        As for `fit`.
    snr : float
        Ratio of the reference signal (without weighting, or the largest) to the standard deviation of the noise of one
        image; it is rounded to the nearest of the levels that the app uses, five per decade.
    noise_is_known : bool, optional
        Whether the estimator is given the noise; by default for diffusion series, as in the app.
    floor_removed : bool, optional
        Whether the noise floor of magnitudes is removed; by default for diffusion series, as in the app.

    Returns
    -------
    Certificate
        Bias, spread and sinks over the parameter space; named tissues; what `Maps` are judged by.
    """
    own = inputs.model_of(model)
    settings = {name: value for name, value in locals().items() if name in _SETTINGS and value is not None}
    protocol, _ = own.adapt(inputs.acquisition_of(own, acquisition, settings))
    fitter = inputs.estimator_of(own, estimator, device=device, weights=weights, options=options)
    is_diffusion = protocol.noise_floor_removed
    removed = is_diffusion if floor_removed is None else floor_removed
    return certify_estimator(
        fitter.fit(protocol, seed=inputs.check_seed(seed)),
        protocol,
        noise=noise_level_of(protocol, inputs.check_snr(snr), floor_removed=removed),
        noise_is_known=is_diffusion if noise_is_known is None else noise_is_known,
    )


def score_motion(t1w: Image, *, weights: str | Path | None = None) -> MotionScore:
    """Score the motion of the head during the acquisition of a T1w image.

    Parameters
    ----------
    t1w : nibabel image or file name
        (x, y, z) whole head, as acquired.
    weights : path, optional
        Weights of another training; those that come with the program without it.

    Returns
    -------
    MotionScore
        Mean and 90 % interval, mm; its distribution; warnings where it may be wrong.

    Raises
    ------
    InputError
        If the image cannot be a T1w of a head.
    """
    import nibabel as nib

    from qmri_bidsapp.motion.scorer import SHIPPED, MotionScorer, score_t1w
    from qmri_bidsapp.preprocess.anat import correct_bias

    data, affine = as_volume(t1w)
    scorer = MotionScorer.open(SHIPPED if weights is None else Path(weights))
    image = nib.Nifti1Image(data, affine)
    if scorer.bias_corrected:
        image = correct_bias(image)
    return score_t1w(np.asarray(image.dataobj), affine, scorer)


#: Settings of protocols by the names of the parameters of `fit`.
_SETTINGS = (
    *("echo_time", "inversion_time", "flip_angle", "repetition_time", "mt_pulse", "preparation_time", "signed"),
    *("bvals", "bvecs", "small_delta", "large_delta"),
)
