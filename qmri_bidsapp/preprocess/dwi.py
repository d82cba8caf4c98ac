"""Diffusion series: denoising, unringing, alignment of the volumes with their gradient directions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.noise import add_rician
from qmri_bidsapp.core.rice import signal_of_mean
from qmri_bidsapp.images.volumes import make_image
from qmri_bidsapp.preprocess.coils import coils_of_air
from qmri_bidsapp.preprocess.mppca import RADIUS, mppca, sigma_of_magnitudes
from qmri_bidsapp.preprocess.patch2self import patch2self
from qmri_bidsapp.preprocess.relaxometry import that_count
from qmri_bidsapp.preprocess.rigid import IDENTITY, Rigid, register, too_small
from qmri_bidsapp.preprocess.ringing import find_ringing
from qmri_bidsapp.preprocess.stillness import Frame, moved_between, moved_within_shell
from qmri_bidsapp.preprocess.unringing import remove_ringing

#: MP-PCA needs the width of a patch along each axis, and enough volumes for a spectrum of noise.
MIN_DENOISE_SIZE = 2 * RADIUS + 1
MIN_DENOISE_VOLUMES = 20
#: Residuals of a fit to each shell hold what the fit does not follow as well, up to 1.2 times the noise in simulations
#: of white matter; beyond this ratio it is not the noise that MP-PCA found.
MAX_SCATTER = 1.5
#: Gibbs ringing is removed along whole lines of k-space: small fields of view have too few.
MIN_UNRING_SIZE = 32
#: Standard deviation of what unringing leaves over that of what it removes: on simulated heads 0.39 to 0.88, by tissue,
#: b-value and voxel size.
LEFT_BY_UNRINGING = 0.65
#: Of the noise of the replicate.
SEED = 1


class Denoised(NamedTuple):
    """A series after `denoise`.

    Attributes
    ----------
    image : Nifti1Image
        (x, y, z, n).
    noise_std : ndarray or None
        (x, y, z) standard deviation of the noise of one raw volume, in the unit of the image; NaN where it was not
        measured. Errors of fits to a denoised series are hardly smaller than those of fits to the raw one: what MP-PCA
        removes is mostly what a model does not follow.
    is_denoised : bool
    floor_removed : bool
        Whether the noise floor of the magnitudes was removed.
    errors : ndarray or None
        (x, y, z, n) float32, of a replicate: the series after denoising with noise drawn anew and denoised again, less
        the series. Fits measure their errors with it, see `fitting.replicate`.
    removed : ndarray or None
        (x, y, z, n) float32, the noise that denoising removed from the replicate. Added to the series, it gives one of
        white noise, as voxels are simulated with.
    n_coils : float
        Coils that were combined by the root of the sum of squares, see `coils_of_air`.
    note : str or None
        Why the step was left out.
    """

    image: nib.Nifti1Image
    noise_std: npt.NDArray[np.float32] | None = None
    is_denoised: bool = False
    floor_removed: bool = False
    errors: npt.NDArray[np.float32] | None = None
    removed: npt.NDArray[np.float32] | None = None
    n_coils: float = 1.0
    note: str | None = None


def denoise_files(
    image: nib.Nifti1Image,
    acquisition: Diffusion,
    *,
    n_volumes: Sequence[int],
    mask: nib.Nifti1Image,
    skip: Collection[str] = (),
    method: str = "mppca",
) -> Denoised:
    """Denoise a series of several files, each by itself: the head may lie, or be distorted, otherwise in each.

    Parameters
    ----------
    image, acquisition, mask, skip, method
        As for `denoise`.
    n_volumes : sequence of int
        Volumes of each file, which follow each other in `image`.

    Returns
    -------
    Denoised
        All files are denoised or none. The standard deviation of the noise is the root mean square over volumes.
    """
    data, found = np.asarray(image.dataobj), []
    for first, n in zip(np.cumsum([0, *n_volumes[:-1]]), n_volumes, strict=True):
        own = np.arange(first, first + n)
        part = denoise(make_image(data[..., own], image), acquisition.select(own), mask=mask, skip=skip, method=method)
        if part.note is not None:
            return Denoised(image, note=part.note)
        found.append(part)
    if len(found) == 1:
        return found[0]

    def joined(name: str) -> npt.NDArray[np.float32] | None:
        values = [getattr(part, name) for part in found]
        return None if values[0] is None else np.concatenate(values, axis=-1)

    noise = np.stack([np.asarray(part.noise_std) for part in found])
    return found[0]._replace(
        image=make_image(np.concatenate([np.asarray(part.image.dataobj) for part in found], axis=-1), image),
        noise_std=np.sqrt(np.average(np.square(noise), axis=0, weights=n_volumes)).astype(np.float32),
        errors=joined("errors"),
        removed=joined("removed"),
    )


def denoise(
    image: nib.Nifti1Image,
    acquisition: Diffusion,
    *,
    mask: nib.Nifti1Image,
    skip: Collection[str] = (),
    method: str = "mppca",
) -> Denoised:
    """Remove noise, and the noise floor of the magnitudes.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z, n), as acquired: any interpolation before would break the noise model.
    acquisition : Diffusion
        Its protocol.
    mask : Nifti1Image
        Where denoised values are needed; others stay as they are.
    skip : collection of str
        Steps left out, see `config.STEPS`: without ``"denoise"`` the noise is still measured, and the noise floor
        stays too, since its correction holds for denoised magnitudes only.
    method : str
        Of `config.DENOISING`: MP-PCA (Veraart et al. 2016), which measures the noise in any case, or Patch2Self.
    """
    if min(image.shape[:3]) < MIN_DENOISE_SIZE or image.shape[3] < MIN_DENOISE_VOLUMES:
        size = " x ".join(map(str, image.shape[:3]))
        note = (
            f"Denoising left out: {size} voxels and {image.shape[3]} volumes (needs {MIN_DENOISE_SIZE} along each axis "
            f"and {MIN_DENOISE_VOLUMES})."
        )
        return Denoised(image, note=note)
    data = np.asarray(image.dataobj, dtype=np.float32)
    inside = _surroundings(mask)
    # One undefined value would invalidate every patch around it: it is zero there, and undefined in the result.
    filled = np.where(np.isfinite(data), data, 0)
    denoised, noise_std, fuller = mppca(filled, inside)
    if method == "patch2self":
        denoised = patch2self(filled, inside, acquisition)
    within = np.asarray(mask.dataobj) > 0
    apart = _scatter_of_directions(data, acquisition, within) / np.median(noise_std[within])
    if apart > MAX_SCATTER:
        note = (
            f"Denoising left out: directions scatter by {apart:.1f} times the noise that MP-PCA finds, so that noise "
            "is correlated between voxels (interpolated or filtered images), or volumes moved much."
        )
        return Denoised(image, note=note)
    n_coils, of_air = coils_of_air(data, within)
    sigma = sigma_of_magnitudes(denoised, noise_std, n_coils)
    if of_air is not None:
        # The floor, of several standard deviations, must be exact.
        sigma = np.where(sigma > 0, np.float32(of_air), 0)
    known = np.where(inside, sigma, np.float32(np.nan))
    if "denoise" in skip:
        return Denoised(image, known)
    floor_removed = "noise-floor" not in skip
    # What of the signal was taken for noise is lost, which a replicate of the denoised series could not show. Beyond
    # the mask patches need noise as well.
    truth = np.where(inside[..., None], remove_noise_floor(fuller, sigma, n_coils), filled)
    removed = _with_noise(truth, sigma, n_coils)
    repeated = patch2self(removed, inside, acquisition) if method == "patch2self" else mppca(removed, inside).series
    removed -= repeated
    if floor_removed:
        denoised, repeated = (remove_noise_floor(values, sigma, n_coils) for values in (denoised, repeated))
    else:
        truth = fuller
    usable = inside[..., None] & np.isfinite(data)
    repeated -= truth
    for values in (removed, repeated):
        values[~usable] = 0
    return Denoised(
        make_image(np.where(usable, denoised, data).astype(np.float32), image),
        known,
        is_denoised=True,
        floor_removed=floor_removed,
        errors=repeated,
        removed=removed,
        n_coils=n_coils,
    )


def _with_noise(
    signals: npt.NDArray[np.float32], sigma: npt.NDArray[np.float32], n_coils: float
) -> npt.NDArray[np.float32]:
    """Return magnitudes of signals (x, y, z, n) with noise of standard deviation (x, y, z) drawn anew."""
    rng, drawn = np.random.default_rng(SEED), np.empty_like(signals)
    # Volume by volume, to save memory.
    for volume in range(signals.shape[3]):
        drawn[..., volume] = add_rician(signals[..., volume], np.maximum(sigma, 0), rng, n_coils)
    return drawn


def _scatter_of_directions(data: npt.NDArray[np.float32], acquisition: Diffusion, mask: npt.NDArray[np.bool_]) -> float:
    """Return the median over voxels of the residuals of a fit to each shell; zero if none has enough directions."""
    fit = acquisition.angular_fit()
    freedom = acquisition.n_measurements - np.trace(fit)
    if freedom < 1:
        return 0.0
    values = data[mask]
    variance = np.square(values - values @ fit.astype(np.float32)).sum(axis=1) / freedom
    return float(np.sqrt(np.nanmedian(variance)))


def remove_noise_floor(
    magnitude: npt.NDArray[np.float32], noise_std: npt.NDArray[np.float32], n_coils: float = 1.0
) -> npt.NDArray[np.float32]:
    """Correct the Rician bias of denoised magnitudes by inverting the mean of the Rice distribution.

    Denoising brings a magnitude near its expectation, which exceeds the signal (Koay and Basser 2006, J Magn Reson
    179:317). Without the correction, powder averages at high b-values come out too high.

    Parameters
    ----------
    magnitude : ndarray
        (x, y, z, n).
    noise_std : ndarray
        (x, y, z) standard deviation of the noise of the real and of the imaginary part.
    n_coils : float
        As for `core.rice.signal_of_mean`.
    """
    corrected, noisy = np.array(magnitude, dtype=np.float32), noise_std > 0
    sigma = noise_std[noisy]
    # Volume by volume, since the inverse is computed in double precision.
    for volume in np.moveaxis(corrected, 3, 0):
        volume[noisy] = signal_of_mean(volume[noisy] / sigma, n_coils) * sigma
    return corrected


def unring(
    image: nib.Nifti1Image,
    acquisition: Diffusion,
    *,
    mask: nib.Nifti1Image,
    is_denoised: bool,
    partial_fourier: float = 1.0,
) -> tuple[nib.Nifti1Image, str]:
    """Remove Gibbs ringing by local subvoxel shifts (Kellner et al. 2016), slice by slice, where there is ringing.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z, n).
    acquisition : Diffusion
        Its protocol.
    mask : Nifti1Image
        Slices beyond it stay as they are: slices do not influence each other.
    is_denoised : bool
        Noise that was not removed would be taken for ringing.
    partial_fourier : float
        Acquired part of k-space; below one, ringing has other periods than these shifts assume, and shifts for these
        periods (Lee et al. 2021) increase the error of heads, see `benchmarks/unringing.py`.

    Returns
    -------
    image : Nifti1Image
        (x, y, z, n).
    note : str
        Why the step was left out, or how ringing was found.
    """
    if reason := _no_unringing(image, is_denoised, partial_fourier):
        return image, f"Unringing left out: {reason}."
    data = np.array(image.dataobj, dtype=np.float32)
    lowest = data[..., acquisition.shells()[0]].mean(axis=3)
    rings, finding = find_ringing(np.nan_to_num(lowest), np.linalg.norm(image.affine[:3, :3], axis=0))
    if not rings:
        return image, f"Unringing left out: {finding}."
    slices = np.flatnonzero(_surroundings(mask).any(axis=(0, 1)))
    chosen = data[:, :, slices]
    # The Fourier transform would spread one undefined value over its slice.
    defined = np.isfinite(chosen)
    cleaned = remove_ringing(np.where(defined, chosen, 0))
    data[:, :, slices] = np.where(defined, cleaned, np.nan)
    return make_image(data, image), f"Ringing was found and removed: {finding}."


def remaining_ringing(image: nib.Nifti1Image, unringed: nib.Nifti1Image) -> npt.NDArray[np.float32]:
    """Return errors of the size that unringing leaves, (x, y, z, n): `LEFT_BY_UNRINGING` times what it removed."""
    removed = np.asarray(image.dataobj, dtype=np.float32) - np.asarray(unringed.dataobj, dtype=np.float32)
    return np.nan_to_num(LEFT_BY_UNRINGING * removed)


def _no_unringing(image: nib.Nifti1Image, is_denoised: bool, partial_fourier: float) -> str | None:
    """Return why unringing would do harm, whether images ring or not."""
    if min(image.shape[:2]) < MIN_UNRING_SIZE:
        return f"{image.shape[0]} x {image.shape[1]} voxels in plane (needs {MIN_UNRING_SIZE})"
    if not is_denoised:
        return "the series was not denoised, and noise would be taken for ringing"
    if partial_fourier < 1:
        return f"{partial_fourier:g} of k-space was acquired (PartialFourier), whose ringing has other periods"
    return None


def _surroundings(mask: nib.Nifti1Image) -> npt.NDArray[np.bool_]:
    """Return the mask dilated by two voxels, which alignment may move into it."""
    from scipy import ndimage

    return np.asarray(ndimage.binary_dilation(np.asarray(mask.dataobj) > 0, iterations=2))


def motions_of(image: nib.Nifti1Image, acquisition: Diffusion) -> tuple[list[Rigid], str]:
    """Find the rigid motion of the volumes.

    A volume that contradicts stillness (see `preprocess.stillness`) is registered to the mean of its shell, whose
    contrast it shares, and such a mean to the mean of the lowest shell.

    Parameters
    ----------
    image : Nifti1Image
        (x, y, z, n).
    acquisition : Diffusion

    Returns
    -------
    motions : list of Rigid
        From the reference to each volume; `IDENTITY` for those that did not move.
    note : str
        How many moved, or why none was registered.
    """
    if reason := too_small(image):
        return [IDENTITY] * image.shape[3], f"Alignment left out: {reason}."
    data = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))
    volumes = [make_image(data[..., i], image) for i in range(image.shape[3])]
    shells = acquisition.shells()
    means = [make_image(data[..., shell].mean(axis=3), image) for shell in shells]
    lowest = np.asarray(means[0].dataobj)
    frame = Frame(lowest >= lowest.mean(), image.affine)
    has_moved = moved_within_shell(frame, data, acquisition.angular_fit())
    motions = [IDENTITY] * len(volumes)
    for mean, shell in zip(means, shells, strict=True):
        to_lowest = IDENTITY
        if mean is not means[0] and moved_between(frame, np.asarray(mean.dataobj), lowest):
            to_lowest = register(means[0], mean, effort="near")
        for index in shell:
            within = IDENTITY
            if len(shell) > 1 and has_moved[index]:
                within = register(mean, volumes[index], effort="quick")
            motions[index] = Rigid(within.matrix @ to_lowest.matrix)
    return that_count(means[0], motions)


def rotate_directions(
    direction: npt.NDArray[np.float64], motion: npt.NDArray[np.float64], affine: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Turn gradient directions with the volumes.

    Parameters
    ----------
    direction : ndarray
        (n, 3) unit vectors, FSL convention: voxel axes, x reversed where the affine's determinant is positive.
    motion : ndarray
        (n, 6) rotation, radian, and translation, mm, from the reference to each volume, RAS.
    affine : ndarray
        (4, 4) of the image.
    """
    from scipy.spatial.transform import Rotation

    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.linalg.det(axes) > 0:
        axes = axes @ np.diag([-1.0, 1.0, 1.0])
    # A motion maps reference points to where they were found in the volume: its inverse brings directions back.
    inverse = Rotation.from_euler("xyz", motion[:, :3]).inv()
    rotated: npt.NDArray[np.float64] = inverse.apply(direction @ axes.T) @ np.linalg.inv(axes).T
    return rotated
