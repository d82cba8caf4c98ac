"""Check what a user hands to the Python face, and bring it to arrays of one grid and one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, SphericalMean
from qmri_bidsapp.errors import InputError, UsageError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.trained import TrainedEstimator
from qmri_bidsapp.fitting.choice import AUTO, preferred_estimator
from qmri_bidsapp.fitting.series import make_estimator
from qmri_bidsapp.images.gradients import as_gradients
from qmri_bidsapp.images.volumes import AFFINE_TOLERANCE, as_series, as_volume
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.registry import get_model

#: Protocol settings with no default.
_NEEDED = ("echo_time", "inversion_time", "preparation_time", "flip_angle", "repetition_time")
#: Larger labels are not exact in the single precision in which images are read.
_MAX_LABEL = 2**24
Values = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]


def model_of(model: Any) -> SignalModel:
    """Return the model of a name, class or instance.

    Raises
    ------
    UsageError
        If the name is unknown, or it is none of these.
    """
    if isinstance(model, str):
        return get_model(model)
    if isinstance(model, type) and issubclass(model, SignalModel):
        return model()
    if isinstance(model, SignalModel):
        return model
    raise UsageError(f"A model is a name or a SignalModel, got {model!r}; see `qmri models`.")


def estimator_of(
    model: SignalModel, estimator: Any, *, device: str, weights: str | Path | None, options: Mapping[str, Any] | None
) -> Estimator:
    """Return an estimator by name, class or instance, not yet fitted; an instance is taken as it is.

    Raises
    ------
    UsageError
        If it is unknown, belongs to another model, or has no such option, weights or device.
    """
    if isinstance(estimator, Estimator):
        if options or weights:
            raise UsageError("Options and weights are for estimators given by name; this one is an instance.")
        if estimator.model.name != model.name:
            raise UsageError(
                f"The estimator is for model {estimator.model.name}, but model {model.name} is fitted; "
                f"make it with get_model({model.name!r})."
            )
        return estimator
    if not isinstance(estimator, str) and not (isinstance(estimator, type) and issubclass(estimator, Estimator)):
        raise UsageError(f"An estimator is a name, a class or an Estimator, got {estimator!r}; see `qmri models`.")
    _check_device(device)
    chosen = preferred_estimator(model) if estimator == AUTO else estimator
    made = make_estimator(model, chosen, device=device, weights=weights, options=options)
    if weights is not None and not isinstance(made, TrainedEstimator):
        raise UsageError(f"Estimator {made.name} takes no weights; name a trained one, e.g. estimator='mlp'.")
    return made


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"There is no device {device!r}; give 'cpu', 'cuda' or 'cuda:n'.") from error
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind.type == "cuda" and (kind.index or 0) >= n_devices:
        raise UsageError(f"Device {device!r} was asked for, but the number of usable GPUs is {n_devices}; give 'cpu'.")


def check_seed(seed: Any) -> int:
    """Return a seed; raise UsageError unless it is an integer that is not negative."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UsageError(f"The seed must be an integer of at least 0, got {seed!r}.")
    return int(seed)


def check_snr(snr: Any) -> float:
    """Return a signal-to-noise ratio; raise UsageError unless it is a positive finite number."""
    value = np.asarray(snr)
    if value.ndim or value.dtype.kind not in "iuf" or not (np.isfinite(value) and value > 0):
        raise UsageError(f"The SNR must be a positive number, got {snr!r}.")
    return float(value)


def acquisition_of(model: SignalModel, acquisition: Acquisition | None, settings: Mapping[str, Any]) -> Acquisition:
    """Return the protocol of a series.

    Parameters
    ----------
    model : SignalModel
    acquisition : Acquisition or None
        Taken as it is; None to make one from the settings.
    settings : mapping
        Parameter of `qmri_bidsapp.fit` -> value.

    Raises
    ------
    UsageError
        If settings are missing, are not numbers, do not belong to the model's protocol, are probably in another unit,
        or come with an `acquisition`.
    """
    if acquisition is not None:
        if settings:
            raise UsageError(f"Give either acquisition or its settings, got both: {', '.join(settings)}.")
        if not isinstance(acquisition, Acquisition):
            raise UsageError(f"acquisition must be an Acquisition, got {acquisition!r}; or give its settings.")
        return acquisition
    kind = Diffusion if issubclass(model.acquisition_type, SphericalMean) else model.acquisition_type
    if kind is Diffusion:
        known, needed = ["bvals", "bvecs", "small_delta", "large_delta"], ["bvals", "bvecs"]
    else:
        known = [item.name for item in fields(kind)]
        needed = [name for name in known if name in _NEEDED]
    if any(name not in known for name in settings) or any(name not in settings for name in needed):
        others = [name for name in known if name not in needed]
        also = f" (and takes {', '.join(others)})" if others else ""
        got = ", ".join(settings) or "none of them"
        raise UsageError(f"Model {model.name} needs {' and '.join(needed)}{also}; got {got}.")
    values = {name: _setting(name, value) for name, value in settings.items() if name not in ("bvals", "bvecs")}
    if kind is Diffusion:
        values |= _gradients(settings["bvals"], settings["bvecs"])
    found = Acquisition.from_dict({"type": kind.__name__, **values})
    doubt = found.doubt_about_units()
    if doubt:
        raise UsageError(f"{doubt} A protocol that is really so is taken as acquisition={kind.__name__}(...).")
    return found


def _setting(name: str, value: Any) -> Any:
    """Return a setting as plain data; raise UsageError unless it is of the kind that its name needs."""
    if name == "signed":
        if not isinstance(value, (bool, np.bool_)):
            raise UsageError(f"signed must be True or False, got {value!r}.")
        return bool(value)
    array = np.asarray(value)
    if name in ("small_delta", "large_delta"):
        if array.ndim or array.dtype.kind not in "iuf":
            raise UsageError(f"{name} must be one number of seconds, got {value!r}.")
        return float(array)
    if array.ndim != 1 or array.dtype.kind not in ("biu" if name == "mt_pulse" else "iuf"):
        what = "True or False" if name == "mt_pulse" else "number"
        raise UsageError(f"{name} must be a list with one {what} per image, got {value!r}.")
    return array.astype(bool).tolist() if name == "mt_pulse" else array.tolist()


def _gradients(bvals: Any, bvecs: Any) -> dict[str, Any]:
    try:
        b_value, direction = as_gradients(bvals, bvecs)
    except (TypeError, ValueError) as error:
        raise UsageError(f"bvals and bvecs must be numbers or names of files ({error}).") from error
    return {"b_value": b_value.tolist(), "direction": direction.tolist()}


def series_of(series: Any) -> tuple[Values, Affine]:
    """Return a series as (x, y, z, n_images), and its affine; see `images.volumes.as_series`.

    Raises
    ------
    InputError
        If it cannot be read as one real number per voxel and image.
    """
    _check_real("The series", series)
    try:
        return as_series(series)
    except (TypeError, ValueError) as error:
        raise InputError(f"The series must be numbers, an image or names of files ({error}).") from error


def volume_of(what: str, image: Any, shape: tuple[int, ...], affine: Affine) -> Values:
    """Return a volume on the grid of a series.

    Parameters
    ----------
    what : str
        Its name in messages, e.g. ``"The mask"``.
    image : array_like, nibabel image or file name
    shape : tuple of int
        (x, y, z) of the series.
    affine : ndarray
        (4, 4) of the series; a plain array has none, and that of a series of plain arrays is not compared.

    Raises
    ------
    InputError
        If it cannot be read, or is on another grid.
    """
    _check_real(what, image)
    try:
        values, own = as_volume(image)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must be an (x, y, z) array, an image or a file name ({error}).") from error
    if values.shape != shape:
        raise InputError(f"{what} has shape {values.shape}, but the series has {shape}: resample it to its grid.")
    has_grid = hasattr(image, "dataobj") or isinstance(image, (str, Path))
    if has_grid and not np.array_equal(affine, np.eye(4)) and not np.allclose(own, affine, atol=AFFINE_TOLERANCE):
        raise InputError(f"The affine of {_lower(what)} differs from that of the series: resample it to its grid.")
    return values


def noise_of(noise_std: Any, shape: tuple[int, ...], affine: Affine) -> Values | None:
    """Return the (x, y, z) standard deviation of the noise, from one value or a map; None if it is not given.

    Raises
    ------
    InputError
        If one value is not positive, a map holds negative values, or it is on another grid.
    """
    if noise_std is None:
        return None
    if not isinstance(noise_std, (str, Path)) and np.ndim(noise_std) == 0 and not hasattr(noise_std, "dataobj"):
        value = np.asarray(noise_std)
        if value.dtype.kind not in "iuf" or not (np.isfinite(value) and value > 0):
            raise InputError(f"noise_std must be a positive number in the unit of the images, got {noise_std!r}.")
        return np.broadcast_to(value.astype(np.float32), shape)
    values = volume_of("The map of noise_std", noise_std, shape, affine)
    if (values < 0).any():
        raise InputError(f"The map of noise_std holds negative values (down to {np.nanmin(values):.4g}).")
    return values


def covariates_of(
    model: SignalModel, given: Mapping[str, Any] | None, mask: npt.NDArray[np.bool_], affine: Affine
) -> list[Values]:
    """Return the map of each covariate of the model, in its order; empty for neutral values.

    Raises
    ------
    UsageError
        If the names are not those of the model's covariates.
    InputError
        If a map is on another grid than the mask, has no value in it, or most likely has another unit.
    """
    known = [covariate.name for covariate in model.covariates]
    if not given:
        return []
    if sorted(given) != sorted(known):
        raise UsageError(f"Covariates of model {model.name}: {', '.join(known) or 'none'}; got {', '.join(given)}.")
    maps = []
    for covariate in model.covariates:
        values = volume_of(f"Covariate {covariate.name}", given[covariate.name], mask.shape, affine)
        finite = values[mask & np.isfinite(values)]
        if mask.any() and not len(finite):
            raise InputError(f"Covariate {covariate.name} has no value in the mask (all NaN); leave it out.")
        median, (low, high) = float(np.median(finite)) if len(finite) else covariate.scale, covariate.bounds
        if not low <= median <= high:
            raise InputError(
                f"Covariate {covariate.name} must lie between {low:g} and {high:g}, got a median of {median:g}: "
                f"its unit is {covariate.unit} ({covariate.description})."
            )
        maps.append(values)
    return maps


def labels_of(regions: Any, shape: tuple[int, ...], affine: Affine) -> npt.NDArray[np.int64]:
    """Return (x, y, z) labels of regions on the grid of a series; NaN are outside.

    Raises
    ------
    InputError
        If they are on another grid, or are not whole numbers.
    """
    values = np.nan_to_num(volume_of("The image of the regions", regions, shape, affine), nan=0.0)
    if not np.array_equal(values, np.round(values)) or np.abs(values).max(initial=0) > _MAX_LABEL:
        raise InputError(
            f"Labels of regions must be whole numbers up to {_MAX_LABEL:,}: give labels, no probabilities."
        )
    return values.astype(np.int64)


def _check_real(what: str, image: Any) -> None:
    """Raise InputError if an array or a loaded image holds complex numbers: their imaginary part would be lost."""
    items = image if isinstance(image, (list, tuple)) else [image]
    for item in items:
        dtype = getattr(getattr(item, "dataobj", item), "dtype", None)
        if dtype is not None and dtype.kind == "c":
            raise InputError(f"{what} must hold real numbers, got {dtype}; give the magnitude.")


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]
