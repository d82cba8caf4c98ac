from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.preprocess import dwi, masks, relaxometry
from qmri_bidsapp.preprocess.distortion import places_of_volumes
from qmri_bidsapp.preprocess.placement import resample_series
from qmri_bidsapp.preprocess.rigid import IDENTITY, Rigid, head_points, register, resample, to_ants

AFFINE = np.array([[-3.0, 0.2, 0, 60], [0.2, 3.0, 0.1, -70], [0, -0.1, 3.0, -40], [0, 0, 0, 1]])
SHAPE = (40, 44, 26)


def head(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A blob with structure, brighter than its background."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = np.sqrt((grid**2).sum(0)) < 0.75
    texture = gaussian_filter(rng.standard_normal(shape), 2.0)
    return (100 * inside * (1 + 0.5 * texture / texture.std() * 0.6)).clip(0).astype(np.float32)


def image(data: np.ndarray, affine: np.ndarray = AFFINE) -> nib.Nifti1Image:
    return nib.Nifti1Image(data.astype(np.float32), affine)


def motion(angles: tuple[float, float, float], shift: tuple[float, float, float]) -> Rigid:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return Rigid(matrix)


def moved(data: np.ndarray, by: Rigid) -> np.ndarray:
    """Data in which the point x of the reference is found at by(x)."""
    return np.nan_to_num(resample(image(data), image(data), Rigid(np.linalg.inv(by.matrix)), order=3))


def test_geometry_survives_the_way_to_ants() -> None:
    """ANTs' own answer for a voxel's position, LPS, against nibabel's, RAS."""
    import ants

    for affine in (AFFINE, np.diag([2.0, 3, 4, 1]), np.diag([-2.0, 3, 4, 1])):
        converted = to_ants(image(head(), affine))
        point = ants.transform_index_to_physical_point(converted, [3, 5, 7])
        expected = affine @ [3, 5, 7, 1]
        np.testing.assert_allclose(point, expected[:3] * [-1, -1, 1], atol=1e-4)


@pytest.mark.parametrize(("effort", "sign", "tolerance"), [("far", -1, 1.0), ("near", -1, 1.0), ("quick", 1, 2.0)])
def test_registration_recovers_a_known_motion(effort: str, sign: int, tolerance: float) -> None:
    """To a fraction of the 3 mm voxels, within the head; with reversed contrast where contrasts may differ."""
    data, true = head(), motion((2.0, -1.0, 3.0), (1.0, -2.0, 1.5))
    found = register(image(data), image(200 + sign * moved(data, true)), effort=effort)
    error = Rigid(np.linalg.inv(true.matrix) @ found.matrix)
    assert error.displacement(head_points(image(data))) < tolerance


def test_alignment_of_a_series_and_its_report() -> None:
    data, true = head(), motion((1.5, 0.0, -2.0), (2.0, 1.0, -1.0))
    series = np.stack([data, 0.7 * moved(data, true), 0.9 * data], axis=-1)
    aligned, found, note = relaxometry.align(image(series))
    assert note.startswith("1 of 3 images moved by more than 0.2 voxels")
    np.testing.assert_allclose(found[1, :3], true.parameters[:3], atol=np.deg2rad(0.5))
    inner = (slice(8, -8),) * 3
    before = np.abs(series[..., 1] / 0.7 - data)[inner].mean()
    after = np.abs(np.asarray(aligned.dataobj)[..., 1] / 0.7 - data)[inner].mean()
    assert after < 0.3 * before
    np.testing.assert_array_equal(np.asarray(aligned.dataobj)[..., 2], series[..., 2])


def protocol(n_volumes: int) -> Diffusion:
    """Return as many shells of one direction."""
    return Diffusion(tuple(100 * 1.2**i for i in range(n_volumes)), ((1.0, 0.0, 0.0),) * n_volumes)


def unring(series: nib.Nifti1Image, mask: nib.Nifti1Image, **known: Any) -> tuple[nib.Nifti1Image, str]:
    return dwi.unring(series, protocol(series.shape[3]), mask=mask, **({"is_denoised": True} | known))


@pytest.mark.usefixtures("ringing")
@pytest.mark.parametrize(
    ("known", "reason"),
    [({"is_denoised": False}, "not denoised"), ({"partial_fourier": 0.75}, "0.75 of k-space was acquired")],
)
def test_unringing_that_would_do_harm_is_left_out(known: dict[str, Any], reason: str) -> None:
    series = image(head(shape=(40, 40, 12))[..., None] * np.ones(2))
    same, note = unring(series, image(np.ones((40, 40, 12))), **known)
    assert same is series
    assert note.startswith("Unringing left out: ")
    assert reason in note


def test_too_few_slices_are_left_alone_with_a_note() -> None:
    series = image(np.stack([head(shape=(20, 20, 2))] * 3, axis=-1))
    same, found, note = relaxometry.align(series)
    assert same is series
    assert note is not None
    assert "2 slices" in note
    assert not found.any()
    _, sigma, *_, note = dwi.denoise(series, protocol(3), mask=image(np.ones((20, 20, 2))))
    assert sigma is None
    assert "20 x 20 x 2 voxels" in str(note)
    assert "20 x 20" in str(unring(series, image(np.ones((20, 20, 2))))[1])


def test_a_small_region_is_left_alone_with_a_note() -> None:
    """Registration of a few centimetres follows contrast and noise: a still region would be moved by degrees."""
    rng = np.random.default_rng(0)
    series = image(rng.normal(100, 5, (15, 15, 11, 4)), np.diag([2.5, 2.5, 2.5, 1]))
    protocol = Diffusion((0.0, 1000, 1000, 1000), ((0.0, 0, 0), *map(tuple, np.eye(3).tolist())))
    places, found, note = places_of_volumes(series, protocol)
    assert resample_series(series, places) is series
    assert not found.any()
    assert note.startswith("Alignment left out: a region of 38 x 38 x 28 mm does not determine motion")


def test_displacement_is_that_of_the_head() -> None:
    """A rotation by one degree moves a sphere of radius 60 mm by 0.7 mm, root mean square, in any field of view."""
    radius = np.linalg.norm(np.indices((50, 50, 50)).T - 24.5, axis=-1).T * 4
    points = head_points(image((radius < 60).astype(np.float32), np.diag([4.0, 4.0, 4.0, 1])))
    centred = points - points.mean(axis=0)
    expected = np.deg2rad(1) * np.sqrt(2 / 5) * 60
    assert motion((0, 0, 1), (0, 0, 0)).displacement(centred) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("flip", [1.0, -1.0], ids=["positive-determinant", "negative-determinant"])
def test_gradient_directions_turn_with_the_head(flip: float) -> None:
    """A head turned by +90 degrees about z and measured along the scanner's x was measured along its own -y."""
    affine = np.diag([flip * 2.0, 2.0, 2.0, 1.0])
    turn = motion((0, 0, 90), (0, 0, 0)).parameters[None]
    world = np.array([1.0, 0.0, 0.0])
    to_world = np.diag([flip, 1, 1]) @ (np.diag([-1.0, 1, 1]) if flip > 0 else np.eye(3))
    stored = np.linalg.inv(to_world) @ world
    turned = to_world @ dwi.rotate_directions(stored[None], turn, affine)[0]
    np.testing.assert_allclose(turned, [0.0, -1.0, 0.0], atol=1e-12)


def test_denoising_lowers_noise_and_knows_its_level() -> None:
    rng = np.random.default_rng(0)
    clean = head(shape=(14, 14, 8))[..., None] * np.exp(-np.linspace(0, 2, 30)) + 60
    noisy = np.hypot(clean + 4 * rng.standard_normal(clean.shape), 4 * rng.standard_normal(clean.shape))
    mask = image(np.ones((14, 14, 8)))
    result, sigma, *_, note = dwi.denoise(image(noisy), protocol(30), mask=mask)
    assert note is None
    assert sigma is not None
    assert np.median(sigma) == pytest.approx(4, rel=0.15)
    assert np.asarray(result.dataobj - clean).std() < 0.5 * 4


def test_noise_is_not_known_where_nothing_was_denoised() -> None:
    """A zero would make standard deviations of zero."""
    rng = np.random.default_rng(0)
    mask = np.zeros((14, 14, 8))
    mask[6:8, 6:8, 4] = 1
    sigma = dwi.denoise(image(rng.normal(100, 4, (14, 14, 8, 24))), protocol(24), mask=image(mask)).noise_std
    assert sigma is not None
    assert (sigma[mask > 0] > 1).all()
    assert np.isnan(sigma[0, 0, 0])
    assert not (sigma == 0).any()


@pytest.mark.usefixtures("ringing")
def test_an_undefined_value_stays_undefined_and_spoils_nothing_else() -> None:
    data = np.abs(np.random.default_rng(0).normal(100, 3, (34, 34, 6, 24))).astype(np.float32)
    spoilt = data.copy()
    spoilt[16, 16, 3, 5] = np.nan
    mask = np.zeros(data.shape[:3])
    mask[14:19, 14:19, 2:4] = 1

    def denoise(volumes: nib.Nifti1Image, mask: nib.Nifti1Image) -> Any:
        return dwi.denoise(volumes, protocol(24), mask=mask)

    for step in (denoise, unring):
        expected, found = (np.asarray(step(image(volumes), image(mask))[0].dataobj) for volumes in (data, spoilt))
        np.testing.assert_array_equal(np.argwhere(np.isnan(found)), [[16, 16, 3, 5]])
        far = (slice(None, 8), slice(None), slice(None))
        np.testing.assert_allclose(found[far], expected[far], rtol=0.01)


@pytest.fixture
def ringing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every image for one that rings."""
    monkeypatch.setattr(dwi, "find_ringing", lambda *_: (True, "as the test says"))


@pytest.mark.usefixtures("ringing")
def test_unringing_leaves_slices_far_from_the_brain_alone() -> None:
    data = head(shape=(40, 40, 12))[..., None] * np.ones(2)
    mask = np.zeros(data.shape[:3])
    mask[15:25, 15:25, 5] = 1
    whole, part = (np.asarray(unring(image(data), image(m))[0].dataobj) for m in (np.ones_like(mask), mask))
    np.testing.assert_array_equal(part[:, :, 3:8], whole[:, :, 3:8])
    np.testing.assert_array_equal(part[:, :, :3], data[:, :, :3].astype(np.float32))
    assert np.abs(whole[:, :, :3] - data[:, :, :3]).max() > 0.1


def test_a_resampled_image_keeps_its_undefined_values() -> None:
    volumes = np.stack([head(), moved(head(), motion((0, 0, 2), (0, 1, 0)))], axis=3)
    volumes[20, 20, 13, 1] = np.nan
    aligned = relaxometry.resampled(image(volumes), [IDENTITY, motion((0, 0, 2), (0, 1, 0))])
    inner = np.asarray(aligned.dataobj)[5:-5, 5:-5, 5:-5]
    np.testing.assert_array_equal(np.argwhere(np.isnan(inner)), [[15, 15, 8, 1]])


def test_values_beyond_the_field_of_view_are_undefined_not_zero() -> None:
    """A zero among positive values would be fitted; a third of a voxel off the edge slice is its value still."""
    data = np.full((10, 10, 10), 50.0)
    for shift, n_undefined in ((1.0, 0), (2.0, 1), (5.0, 2)):
        found = resample(
            image(data, np.diag([3.0, 3, 3, 1])),
            image(data, np.diag([3.0, 3, 3, 1])),
            motion((0, 0, 0), (0, 0, shift)),
            order=3,
        )
        assert np.isnan(found).all(axis=(0, 1)).sum() == n_undefined
        np.testing.assert_allclose(found[np.isfinite(found)], 50, rtol=1e-5)


def test_without_registration_the_headers_count() -> None:
    """A T1w that is 8 mm off in its header is registered; with `register` left out its labels stay 8 mm off."""
    data, off = head(), np.array(AFFINE)
    off[0, 3] += 8
    displaced = []
    for skip in ((), ("register",)):
        (mask,), note = masks.transfer(image(data, off), [image(data > 0, off)], image(data), skip=skip)
        assert note is None
        centres = [np.argwhere(labels > 0).mean(axis=0) for labels in (np.asarray(mask.dataobj), data)]
        displaced.append(np.linalg.norm(AFFINE[:3, :3] @ (centres[0] - centres[1])))
    assert displaced[0] < 1
    assert displaced[1] == pytest.approx(8, abs=1.5)


@pytest.mark.parametrize("amplitude", [0.0, 0.5, 1.0, 2.0, 4.0, 30.0])
def test_noise_floor_is_removed(amplitude: float) -> None:
    """The mean of many Rician draws gives the signal, down to none at all."""
    rng, sigma = np.random.default_rng(1), 7.0
    draws = np.hypot(sigma * (amplitude + rng.standard_normal(400_000)), sigma * rng.standard_normal(400_000))
    expectation = np.full((1, 1, 1, 1), draws.mean(), np.float32)
    corrected = dwi.remove_noise_floor(expectation, np.full((1, 1, 1), sigma, np.float32))
    # Near zero the mean hardly depends on the signal: its error of 0.001 sigma becomes 0.1 sigma.
    tolerance = 0.1 if amplitude < 0.5 else 0.02
    assert corrected.item() / sigma == pytest.approx(amplitude, abs=tolerance)


def test_without_noise_there_is_no_floor() -> None:
    """Denoising finds a noise of zero next to voxels that a scanner set to zero."""
    values = np.array([0.0, 3.0], np.float32).reshape(1, 1, 1, 2)
    for sigma in (0.0, np.nan):
        np.testing.assert_array_equal(dwi.remove_noise_floor(values, np.full((1, 1, 1), sigma, np.float32)), values)


class TestMasks:
    def test_labels_reach_another_grid(self) -> None:
        data = head()
        brain = image(data > 0)
        coarse = image(np.zeros((30, 33, 20)), AFFINE @ np.diag([4 / 3, 4 / 3, 4 / 3, 1]))
        reference = image(resample(image(data), coarse, Rigid(np.eye(4)), order=1), coarse.affine)
        (mask, same), note = masks.transfer(image(data), [brain, brain], reference)
        assert note is None
        expected = np.asarray(reference.dataobj) > 20
        found = np.asarray(mask.dataobj) > 0
        assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.93
        np.testing.assert_array_equal(np.asarray(same.dataobj), np.asarray(mask.dataobj))

    def test_brain_outside_the_series_is_an_error(self) -> None:
        data = head()
        far = np.array(AFFINE)
        far[:3, 3] += 1000
        with pytest.raises(InputError, match="outside the series"):
            masks.transfer(image(data), [image(data > 0)], image(np.ones((20, 20, 4)), far))

    def test_no_signal(self) -> None:
        with pytest.raises(InputError, match="no signal"):
            masks.series_mask(image(np.zeros((8, 8, 2, 3))))

    @pytest.mark.parametrize("direction", ["AP", "PA"])
    def test_mask_of_a_real_series_is_that_of_the_scanner(self, crops, direction: str) -> None:
        """The scanner masks its map of anisotropy (dir-PA); distortions move the brain's edge in dir-AP."""
        name = "sub-prisma/dwi/sub-prisma_dir-{}_{}.nii.gz"
        found = np.asarray(masks.series_mask(nib.load(crops / name.format(direction, "dwi"))).dataobj) > 0
        scanner = crops / "derivatives" / "scanner" / name.format("PA", "desc-scanner_FA")
        expected = np.asarray(nib.load(scanner).dataobj) > 0
        overlap = 2 * (found & expected).sum() / (found.sum() + expected.sum())
        assert overlap > {"AP": 0.90, "PA": 0.97}[direction]

    @pytest.mark.parametrize(
        ("subject", "folder", "least"),
        [("irbrain", "anat", 0.92), ("mwi", "anat", 0.80), ("mdtb2k", "dwi", 0.90)],
    )
    def test_real_series_without_t1w(self, real, subject: str, folder: str, least: float) -> None:
        from qmri_bidsapp.images.volumes import load_image, merge_series

        files = sorted((real / f"sub-{subject}" / folder).glob("*.nii.gz"))
        series = merge_series(files) if len(files) > 1 else load_image(files[0], ndim=4)
        found = np.asarray(masks.series_mask(series).dataobj) > 0
        path = real / "derivatives" / "reference" / f"sub-{subject}" / folder / f"sub-{subject}_desc-brain_mask.nii.gz"
        expected = np.asarray(nib.load(path).dataobj).reshape(found.shape) > 0
        assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > least
