"""Field of a pair of opposite phase encoding: against the truth, in every orientation, and on a real head."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.distorted import Pair, share_removed, simulated_pair

from qmri_bidsapp.core.phase_encoding import PhaseEncoding
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.preprocess.bending import Bending, solve
from qmri_bidsapp.preprocess.pair_fit import PairFit
from qmri_bidsapp.preprocess.resampling import resample_volume, stretching_of, voxel_matrix
from qmri_bidsapp.preprocess.susceptibility import MAX_STD, FieldEstimate, field_of_pair, piled_up

REAL = Path(__file__).resolve().parents[1] / "data/real/sub-prisma/dwi"


@pytest.fixture(scope="module")
def pair() -> Pair:
    return simulated_pair()


@pytest.fixture(scope="module")
def estimate(pair: Pair) -> FieldEstimate:
    return field_of_pair(pair.up, pair.down, *pair.encodings)


def restored(pair: Pair, estimate: FieldEstimate) -> list[np.ndarray]:
    """Both images without distortion and motion."""
    matrices = [np.eye(4), voxel_matrix(pair.down, pair.up, estimate.motion)]
    return [
        resample_volume(np.asarray(image.dataobj), matrix, encoding.displacement(estimate.field), encoding.axis)
        for image, encoding, matrix in zip((pair.up, pair.down), pair.encodings, matrices, strict=True)
    ]


def test_most_of_a_known_displacement_is_removed(pair: Pair, estimate: FieldEstimate) -> None:
    assert share_removed(pair, estimate.field) >= 0.9
    assert estimate.in_hertz
    known = estimate.determined & pair.mask
    assert known.sum() > 0.85 * pair.mask.sum()
    assert np.median(np.abs(estimate.field - pair.field)[known]) < 1.0


def test_corrected_images_are_the_undistorted_head(pair: Pair, estimate: FieldEstimate) -> None:
    before = [np.abs(np.asarray(image.dataobj) - pair.head)[pair.mask].mean() for image in (pair.up, pair.down)]
    after = [np.nanmean(np.abs(image - pair.head)[pair.mask]) for image in restored(pair, estimate)]
    assert max(after) < 0.5 * min(before)
    assert estimate.correlation[1] > 0.98 > estimate.correlation[0]


def test_the_stretching_stays_positive(pair: Pair, estimate: FieldEstimate) -> None:
    for encoding in pair.encodings:
        assert stretching_of(encoding.displacement(estimate.field), np.eye(4), 1).min() > 0


def test_the_standard_deviation_is_that_of_the_error(pair: Pair, estimate: FieldEstimate) -> None:
    inner = estimate.determined & pair.mask
    z = (estimate.field - pair.field)[inner] / estimate.std[inner]
    assert 0.5 < 1.4826 * np.median(np.abs(z)) < 1.3
    assert 0.9 < np.mean(np.abs(z) < 1.96) < 0.99
    assert np.median(estimate.std[~pair.mask]) > 3 * np.median(estimate.std[inner])
    assert not estimate.determined[estimate.std * 0.05 > MAX_STD].any()
    assert not estimate.determined[:2].any()


@pytest.mark.parametrize("readouts", [(0.08, 0.03), (0.03, 0.08)], ids=["longer-up", "longer-down"])
def test_images_of_different_readout_give_the_same_field(readouts: tuple[float, float]) -> None:
    pair = simulated_pair(readouts=readouts)
    assert share_removed(pair, field_of_pair(pair.up, pair.down, *pair.encodings).field) >= 0.85


def test_exchanged_images_give_the_same_field(pair: Pair, estimate: FieldEstimate) -> None:
    exchanged = field_of_pair(pair.down, pair.up, *pair.encodings[::-1])
    assert np.median(np.abs(exchanged.field - estimate.field)[pair.mask]) < 0.3


def test_motion_between_the_images_is_part_of_the_estimate() -> None:
    # Points of the first head are found in the second one at the inverse of what the simulation looks up.
    pair = simulated_pair(rotation=(0.0, 2.0, 0.0), shift=(0.0, 0.0, 2.0))
    estimate = field_of_pair(pair.up, pair.down, *pair.encodings)
    assert share_removed(pair, estimate.field) >= 0.9
    first, second = restored(pair, estimate)
    known = estimate.determined & pair.mask & np.isfinite(second)
    assert np.corrcoef(first[known], second[known])[0, 1] > 0.98
    assert np.rad2deg(estimate.motion.parameters[1]) == pytest.approx(-2.0, abs=0.3)


def test_a_still_head_has_no_motion(estimate: FieldEstimate) -> None:
    np.testing.assert_array_equal(estimate.motion.matrix, np.eye(4))


def test_without_a_readout_time_the_field_is_in_voxels(pair: Pair) -> None:
    note = "fields are in voxels"
    encodings = [replace(encoding, readout=None, note=note) for encoding in pair.encodings]
    found = field_of_pair(pair.up, pair.down, *encodings)
    assert not found.in_hertz
    assert note in found.notes
    assert share_removed(pair, found.field / 0.05) >= 0.9


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_the_correction_acts_along_the_right_axis_in_every_orientation(order: tuple[int, ...]) -> None:
    whole = simulated_pair()
    cut = (slice(8, -8), slice(2, -2), slice(6, 14))
    axis = order.index(1)
    for flips in itertools.product((1, -1), repeat=3):
        turn = tuple(slice(None, None, flip) for flip in flips)

        def turned(values: np.ndarray, turn: tuple[slice, ...] = turn) -> np.ndarray:
            return np.ascontiguousarray(values[cut].transpose(order)[turn])

        images = [
            nib.Nifti1Image(turned(np.asarray(i.dataobj)), np.diag([4.0, 4, 4, 1])) for i in (whole.up, whole.down)
        ]
        encodings = [PhaseEncoding(axis, flips[axis] * sign, 0.05) for sign in (1, -1)]
        found = field_of_pair(*images, *encodings)
        true, mask = turned(whole.field), turned(whole.mask)
        far = mask & (np.abs(true) * 0.05 * 4 > 2)
        assert np.median(1 - np.abs(found.field - true)[far] / np.abs(true)[far]) > 0.8


def test_several_volumes_are_averaged_and_one_bad_one_does_not_matter(pair: Pair) -> None:
    rng = np.random.default_rng(3)
    stacks = []
    for image in (pair.up, pair.down):
        data = np.asarray(image.dataobj)
        volumes = np.stack([data + rng.standard_normal(data.shape) for _ in range(3)] + [np.zeros_like(data)], axis=3)
        stacks.append(nib.Nifti1Image(volumes[..., [0, 3, 1, 2]].astype(np.float32), image.affine))
    assert share_removed(pair, field_of_pair(*stacks, *pair.encodings).field) >= 0.85


def test_intensities_that_differ_between_slices_are_no_stretching(pair: Pair, estimate: FieldEstimate) -> None:
    data = np.asarray(pair.down.dataobj) * 1.3
    data[..., ::2] *= 0.9
    found = field_of_pair(pair.up, nib.Nifti1Image(data, pair.down.affine), *pair.encodings)
    assert np.median(np.abs(found.field - estimate.field)[pair.mask]) < 0.5


def test_a_pair_that_is_none_is_refused(pair: Pair) -> None:
    up, down = pair.encodings
    with pytest.raises(InputError, match=r"opposite phase encoding .* got j and j"):
        field_of_pair(pair.up, pair.down, up, up)
    with pytest.raises(InputError, match="got j and i-"):
        field_of_pair(pair.up, pair.down, up, replace(down, axis=0))
    with pytest.raises(InputError, match="same shape"):
        field_of_pair(pair.up, pair.down.slicer[:, :, 1:], up, down)
    with pytest.raises(InputError, match="oriented alike"):
        field_of_pair(pair.up, nib.Nifti1Image(pair.down.dataobj, np.diag([4.0, -4, 4, 1])), up, down)
    with pytest.raises(InputError, match="no signal"):
        field_of_pair(pair.up, nib.Nifti1Image(np.zeros(pair.up.shape, np.float32), pair.up.affine), up, down)


def test_piled_up_voxels_are_marked() -> None:
    displacement = -0.7 * np.indices((5, 9, 5))[1].astype(float)
    assert piled_up(displacement, np.eye(4), 1).all()
    assert not piled_up(-displacement, np.eye(4), 1).any()


def test_bending_energy_is_the_sum_of_squared_second_derivatives() -> None:
    spacing = (2.0, 3.0, 1.5)
    bending = Bending((7, 6, 5), spacing, torch.device("cpu"))
    field = torch.randn(7, 6, 5, generator=torch.Generator().manual_seed(1))
    energy = sum(
        float((field.diff(dim=i).diff(dim=j) / (spacing[i] * spacing[j])).square().sum())
        for i, j in itertools.product(range(3), repeat=2)
    )
    assert float((field * bending.gradient(field)).sum()) == pytest.approx(energy, rel=1e-5)
    linear = torch.arange(7.0)[:, None, None] + 2 * torch.arange(5.0).expand(7, 6, 5)
    assert float(bending.gradient(linear).abs().max()) < 1e-4


def test_conjugate_gradients_solve_the_system() -> None:
    bending = Bending((6, 5, 7), (1.0, 1.0, 1.0), torch.device("cpu"))
    true = torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(1))

    def operator(field: torch.Tensor) -> torch.Tensor:
        return field + 0.1 * bending.gradient(field)

    found = solve(operator, operator(true), bending.preconditioner(0.1, 0.0, 1.0), n_steps=100, tolerance=1e-6)
    torch.testing.assert_close(found, true, atol=1e-3, rtol=1e-3)


def test_the_gradient_of_the_cost_is_right() -> None:
    generator = torch.Generator().manual_seed(1)
    up, down = (torch.rand(4, 5, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    up[..., [0, 1, -2, -1]] = down[..., [0, 1, -2, -1]] = 0
    fit = PairFit(up, down, (2.0, 2.0, 2.0), (1.2, -0.8), 10.0)
    displacement = 0.1 * torch.randn(fit.shape, generator=generator, dtype=torch.float64)
    direction = 0.1 * torch.randn(fit.shape, generator=generator, dtype=torch.float64)
    direction[..., 0] = direction[..., -1] = displacement[..., 0] = displacement[..., -1] = 0
    misfit = fit.misfit(displacement)
    slope = 2 * float((fit.gradient(displacement, misfit) * direction).sum())
    step = 1e-5
    costs = [fit.cost(displacement + sign * step * direction, misfit.inside) for sign in (1, -1)]
    assert slope == pytest.approx((costs[0] - costs[1]) / (2 * step), rel=1e-4)


def test_a_real_head_is_corrected() -> None:
    images, encodings = [], []
    for direction in ("PA", "AP"):
        path = REAL / f"sub-prisma_dir-{direction}_dwi.nii.gz"
        image = nib.load(path)
        b_values = np.loadtxt(path.with_name(path.name.replace(".nii.gz", ".bval")))
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        images.append(nib.Nifti1Image(image.get_fdata(dtype=np.float32)[..., b_values < 50], image.affine))
        encodings.append(PhaseEncoding.from_sidecar(sidecar, image.shape))
    found = field_of_pair(*images, *encodings)
    assert found.correlation[0] < 0.7
    assert found.correlation[1] > 0.99
    assert any("5 slices do not determine motion" in note for note in found.notes)
    assert 20 < np.percentile(np.abs(found.field[found.determined]), 95) < 60


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_field(pair: Pair, estimate: FieldEstimate) -> None:
    found = field_of_pair(pair.up, pair.down, *pair.encodings, device="cuda")
    assert np.median(np.abs(found.field - estimate.field)[pair.mask]) < 0.1
