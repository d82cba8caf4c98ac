"""Field that distorts EPIs, from a pair of opposite phase encoding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.phase_encoding import PhaseEncoding
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.preprocess.pair_fit import HEAD, MISFIT, PairFit
from qmri_bidsapp.preprocess.pair_images import PairImages
from qmri_bidsapp.preprocess.pair_motion import has_moved, motion_step
from qmri_bidsapp.preprocess.resampling import stretching_of
from qmri_bidsapp.preprocess.rigid import IDENTITY, Rigid, too_small

Array = npt.NDArray[np.float32]

#: Resolutions, in voxels of the finer axes, from coarse to fine.
LEVELS = (8, 4, 2, 1)
#: Steps at each resolution, and the change, voxels, at which they end.
N_STEPS, TOLERANCE = (10, 10, 6, 4), 0.03
#: Fewest voxels along an axis at a resolution, and steps for motion at each.
MIN_COARSE, N_MOTION_STEPS = 6, 4
#: Weights of the bending energy that are tried, from smooth to rough, mm^4 per squared voxel of the image, and the one
#: of the resolutions before.
WEIGHTS = (1e5, 3e4, 1e4, 3e3, 1e3, 3e2, 1e2, 3e1)
FIRST_WEIGHT = 300.0
#: The smoothest field is taken whose mean squared misfit is at most this many times that of the roughest: what
#: smoothness adds to the misfit is no more than what no field explains (Morozov's discrepancy principle, with the
#: misfit of the roughest field as the noise).
EXCESS = 2.0
#: Samples that the standard deviation comes from, and the seed of their signs.
N_SAMPLES, SEED = 16, 1
#: Columns, each way, at half the resolution, whose misfits are alike.
CLUSTER = 4
#: Width of the neighbourhood, voxels at half the resolution, over which what smoothness removed is averaged.
NEIGHBOURS = 5
#: Standard deviation of the displacement, voxels, above which the field counts as not determined.
MAX_STD = 0.5
#: A voxel that holds the signal of more than 1 / 0.4 = 2.5 voxels is piled up.
PILE_UP = 0.4
#: Images may be less than this apart in direction, cosine.
MIN_COSINE = 0.99


@dataclass(frozen=True)
class FieldEstimate:
    """A field of the magnet's inhomogeneity over the head, in undistorted space.

    Attributes
    ----------
    field : ndarray
        (x, y, z) float32, Hz, or voxels of displacement where `in_hertz` is false.
    std : ndarray
        (x, y, z) standard deviation, in the same unit.
    determined : ndarray
        (x, y, z) bool: there is signal in both images and the standard deviation is below `MAX_STD` voxels.
    in_hertz : bool
    motion : Rigid
        From the image on whose grid the field is to the other one of the pair.
    weight : float
        Of the bending energy, see `WEIGHTS`.
    correlation : tuple of float
        Of both images over the head, before and after correction.
    notes : tuple of str
        What a user should know.
    """

    field: Array
    std: Array
    determined: npt.NDArray[np.bool_]
    in_hertz: bool
    motion: Rigid = IDENTITY
    weight: float = float("nan")
    correlation: tuple[float, float] = (float("nan"), float("nan"))
    notes: tuple[str, ...] = ()


def piled_up(
    displacement: npt.NDArray[np.floating], matrix: npt.NDArray[np.floating], axis: int
) -> npt.NDArray[np.bool_]:
    """Return where an image holds signal of several places that no correction separates, (x, y, z) bool.

    Parameters
    ----------
    displacement, matrix, axis
        As for `resampling.resample_volume`.
    """
    return stretching_of(displacement, matrix, axis) < PILE_UP


def field_of_pair(
    up: nib.Nifti1Image,
    down: nib.Nifti1Image,
    encoding_up: PhaseEncoding,
    encoding_down: PhaseEncoding,
    *,
    device: str = "cpu",
) -> FieldEstimate:
    """Estimate the field from two EPIs of opposite phase encoding.

    Coarse to fine; at each resolution Gauss-Newton steps for the displacement (see `pair_fit`) alternate with one for
    the rigid motion between both images. A translation along the phase-encoding axis cannot be distinguished from a
    constant field and counts as field. Intensities are balanced first: whatever the field, a column along the
    phase-encoding axis has the same sum in both images.

    Parameters
    ----------
    up, down : Nifti1Image
        (x, y, z) or (x, y, z, n): volumes with b = 0, of which the mean (from three on, the median) is used.
    encoding_up, encoding_down : PhaseEncoding
        Along the same axis, opposite.
    device : str
        Torch device.

    Returns
    -------
    FieldEstimate
        On the grid of `up`.

    Raises
    ------
    InputError
        If the pair has other shapes or orientations, the same direction, or no signal.
    """
    _check(up, down, encoding_up, encoding_down)
    readouts, in_hertz, notes = _readouts(encoding_up, encoding_down)
    pair = PairImages(up, down, encoding_up, readouts, device, encoding_up.sign)
    reason = too_small(pair.up)
    if reason:
        notes.append(f"Motion between the pair is not estimated: {reason}.")
    displacement, std, weight = _coarse_to_fine(pair, estimate_motion=not reason)
    fit = pair.fit(1, weight)
    before, after = (fit.misfit(u) for u in (torch.zeros_like(displacement), displacement))
    to_field = 1.0 / pair.readout
    determined = after.head.cpu() & (std < MAX_STD)
    return FieldEstimate(
        field=pair.native(_centres(displacement).cpu().numpy() * to_field),
        std=pair.native(std.numpy() * to_field),
        determined=pair.native(determined.numpy()),
        in_hertz=in_hertz,
        motion=pair.motion.rigid(pair.up.affine),
        weight=weight,
        correlation=(_correlation(before.up, before.down), _correlation(after.up, after.down)),
        notes=tuple(notes),
    )


def _check(up: nib.Nifti1Image, down: nib.Nifti1Image, first: PhaseEncoding, second: PhaseEncoding) -> None:
    if not first.is_opposite(second):
        names = [f"{'ijk'[encoding.axis]}{'' if encoding.sign > 0 else '-'}" for encoding in (first, second)]
        raise InputError(
            f"A pair needs opposite phase encoding (such as j and j-), got {names[0]} and {names[1]}: check "
            "PhaseEncodingDirection, or leave the correction out."
        )
    if up.shape[:3] != down.shape[:3]:
        raise InputError(f"The images of a pair must have the same shape, got {up.shape[:3]} and {down.shape[:3]}.")
    if min(up.shape[:2]) < 2 or up.shape[first.axis] < 2 * LEVELS[-2]:
        raise InputError(f"An image of {up.shape[:3]} voxels is too small for a field.")
    axes = [image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0) for image in (up, down)]
    if (np.sum(axes[0] * axes[1], axis=0) < MIN_COSINE).any():
        raise InputError("The images of a pair must be oriented alike, their affines are not: acquire them alike.")


def _readouts(first: PhaseEncoding, second: PhaseEncoding) -> tuple[tuple[float, float], bool, list[str]]:
    """Return both readout times (1 if none is known), whether the field is in Hz, and notes."""
    known = [encoding.readout for encoding in (first, second) if encoding.readout is not None]
    notes = list(dict.fromkeys(encoding.note for encoding in (first, second) if encoding.note))
    if not known:
        return (1.0, 1.0), False, notes
    if len(known) == 1:
        notes.append(f"Only one image of the pair has a readout time ({known[0]:.4g} s); it is used for both.")
    return (known[0], known[-1]), True, notes


def _coarse_to_fine(pair: PairImages, *, estimate_motion: bool) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the displacement, (x, z, y + 1) voxels, its standard deviation, (x, z, y) on the host, and the weight."""
    levels = [level for level in LEVELS if level == 1 or min(pair.shape[0], pair.shape[2]) >= MIN_COARSE * level]
    weight, previous = FIRST_WEIGHT, levels[0]
    fit = pair.fit(levels[0], weight)
    displacement = std = torch.zeros(fit.shape, device=fit.device)
    for level, n_steps in zip(levels, N_STEPS[-len(levels) :], strict=True):
        fit = pair.fit(level, weight)
        displacement = _allowed(fit, pair.refine(displacement, previous, level))
        displacement = fit.run(displacement, n_steps, TOLERANCE)
        for _ in range(N_MOTION_STEPS if estimate_motion and level > 1 else 0):
            motion, displacement = motion_step(fit, displacement, pair.motion)
            pair.move(motion)
            fit = pair.fit(level, weight)
            displacement = fit.run(displacement, n_steps, TOLERANCE)
        if level == levels[-2:][0]:
            if estimate_motion and not (pair.motion_counts and has_moved(fit, displacement, pair.motion)):
                pair.move(replace(pair.motion, matrix=np.eye(4)))
            weight, displacement, rough = _choose_weight(pair, level, displacement)
            std = pair.refine(_std(pair.fit(level, weight), displacement, rough), level, 1)
        previous = level
    return displacement, _centres(std).cpu(), weight


def _allowed(fit: PairFit, displacement: torch.Tensor) -> torch.Tensor:
    """Shrink a displacement until it stretches no voxel too far."""
    while not fit.is_allowed(displacement):
        displacement = 0.9 * displacement
    return displacement


def _choose_weight(
    pair: PairImages, level: int, displacement: torch.Tensor
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Return the weight of the bending energy, the displacement with it, and one with about a tenth of it."""
    fits, misfits = [], []
    for weight in WEIGHTS:
        fit = pair.fit(level, weight)
        displacement = fit.run(displacement, 3, TOLERANCE)
        misfit = fit.misfit(displacement)
        fits.append(displacement)
        misfits.append(float(misfit.residual[misfit.head].square().mean()))
    logs = np.log(misfits)
    goal = np.log(EXCESS) + min(logs)
    index = next(i for i, value in enumerate(logs) if value <= goal)
    rough = fits[min(index + 2, len(fits) - 1)]
    if index == 0:
        return WEIGHTS[0], fits[0], rough
    share = (logs[index - 1] - goal) / (logs[index - 1] - logs[index])
    weight = float(np.exp(np.interp(share, [0, 1], np.log(WEIGHTS[index - 1 : index + 1]))))
    return weight, pair.fit(level, weight).run(fits[index], 3, TOLERANCE), rough


def _std(fit: PairFit, displacement: torch.Tensor, rough: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of a displacement, in its unit.

    Samples of what it may be: the bending energy as the prior, whose scale is the mean misfit, and the misfit itself
    with random signs, alike within blocks of columns, as the noise: it keeps what correlates the misfit along a column.
    To their variance is added what smoothness may have removed: the mean square over neighbours of the difference from
    a rougher displacement.
    """
    misfit = fit.misfit(displacement)
    scale = float((misfit.residual[misfit.head].square().mean() / MISFIT**2).sqrt())
    generator = torch.Generator().manual_seed(SEED)
    rows, columns = misfit.up.shape[:2]
    total = torch.zeros_like(displacement)
    for _ in range(N_SAMPLES):
        signs = torch.randint(0, 2, (-(-rows // CLUSTER), -(-columns // CLUSTER)), generator=generator) * 2.0 - 1
        signs = signs.repeat_interleave(CLUSTER, 0)[:rows].repeat_interleave(CLUSTER, 1)[:, :columns].to(displacement)
        noise = fit.pulled(misfit.residual * signs[..., None], misfit)
        prior = scale * fit.weight**0.5 * fit.bending.random(generator)
        total += fit.solve(noise + prior, displacement, misfit).square()
    width = [min(NEIGHBOURS, size - 1 + size % 2) for size in displacement.shape]
    bias = torch.nn.functional.avg_pool3d(
        (displacement - rough).square()[None, None],
        width,
        stride=1,
        padding=[size // 2 for size in width],
        count_include_pad=False,
    )[0, 0]
    return (total / N_SAMPLES + bias).sqrt()


def _centres(faces: torch.Tensor) -> torch.Tensor:
    """Return values at the centres of voxels, (x, z, y), from those on faces."""
    return (faces[..., 1:] + faces[..., :-1]) / 2


def _correlation(up: torch.Tensor, down: torch.Tensor) -> float:
    head = up + down > 2 * HEAD
    return float(torch.corrcoef(torch.stack([up[head], down[head]]))[0, 1])
