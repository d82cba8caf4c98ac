"""The sign of inversion recoveries, from complex images with a known one."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.preprocess.polarity import restore_sign, signed_series
from qmri_bidsapp.preprocess.recovery_signs import opposite_signs

TIMES = np.array([0.05, 0.3, 0.6, 1.0, 1.6, 2.4])
SHAPE = (12, 10, 4)


def truth() -> np.ndarray:
    """(x, y, z, n); nulls from before the first to behind the last inversion time."""
    t1 = np.geomspace(0.06, 4.5, SHAPE[0])[:, None, None, None] * np.ones((*SHAPE, 1))
    return 100 * (1 - 1.95 * np.exp(-TIMES / t1))


def complex_images(noise: float = 0.0, drift: float = 0.0) -> np.ndarray:
    """With a phase that varies over the head, as of coils, and from image to image."""
    rng = np.random.default_rng(1)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    phase = (5 * x + 3 * y * y - 2 * z)[..., None] + drift * rng.uniform(-1, 1, len(TIMES))
    signal = truth() * np.exp(1j * phase)
    return signal + noise * (rng.standard_normal(signal.shape) + 1j * rng.standard_normal(signal.shape))


def image(data: np.ndarray) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(data, dtype=np.float32), np.eye(4))


@pytest.mark.parametrize("drift", [0.0, 1.0], ids=["steady", "drifting"])
def test_sign_is_restored_wherever_the_null_lies(drift: float) -> None:
    signed, contradiction = restore_sign(complex_images(drift=drift))
    np.testing.assert_allclose(signed, truth(), atol=0.02 if drift == 0 else 4.0)
    assert contradiction < 0.005


def test_noise_stays_gaussian_at_the_null() -> None:
    signed, _ = restore_sign(complex_images(noise=1.5))
    error = signed - truth()
    assert abs(np.median(error)) < 0.15
    assert error.std() == pytest.approx(1.5, rel=0.1)


@pytest.mark.parametrize(
    ("scale", "offset", "unit"),
    [
        (1.0, 0.0, "rad"),
        (1.0, 0.0, "arbitrary"),
        (1.0, np.pi, None),
        (180 / np.pi, 0.0, "degree"),
        (4096 / np.pi, 0.0, "arbitrary"),
        (2048 / np.pi, np.pi, "arbitrary"),
    ],
    ids=["radian", "radian-untold", "radian-from-zero", "degree", "signed-integers", "unsigned-integers"],
)
def test_units_of_the_phase(scale: float, offset: float, unit: str | None) -> None:
    signal = complex_images(noise=0.5)
    stored = (np.angle(signal) + offset) * scale
    if scale > 100:
        stored = np.floor(stored)
    signed, note = signed_series(image(np.abs(signal)), image(stored), "phase", unit, TIMES)
    assert note is None
    np.testing.assert_allclose(np.asarray(signed.dataobj), truth(), atol=4)


@pytest.mark.parametrize(
    ("scale", "offset", "unit"),
    [(1000.0, 0.0, "milliradian"), (1000.0, np.pi, "milliradian"), (180 / np.pi, 0.0, "degrees")],
    ids=["milliradian", "milliradian-from-zero", "degrees"],
)
def test_units_that_the_range_gives_away_are_said(scale: float, offset: float, unit: str) -> None:
    """Milliradian passed as integers of 13 bits, and T1 came out 40 % too long."""
    signal = complex_images(noise=0.5)
    stored = np.round((np.angle(signal) + offset) * scale)
    signed, note = signed_series(image(np.abs(signal)), image(stored), "phase", None, TIMES)
    assert f"are taken as {unit}" in note
    np.testing.assert_allclose(np.asarray(signed.dataobj), truth(), atol=4)


@pytest.mark.parametrize(
    ("scale", "unit", "message"),
    [
        (1000.0, "rad", "in milliradian"),
        (180 / np.pi, "rad", "in degrees"),
        (2048 / np.pi, "degree", "in 12 bits"),
        (1.0, "degree", "in radian"),
        (500.0, "arbitrary", "values from -15"),
        (1 / np.pi, None, "fractions of pi"),
    ],
    ids=["milliradian-as-radian", "degree-as-radian", "bits-as-degree", "radian-as-degree", "no-unit", "fraction"],
)
def test_values_that_contradict_their_unit_are_refused(scale: float, unit: str | None, message: str) -> None:
    signal = complex_images(noise=0.5)
    with pytest.raises(InputError, match=message):
        signed_series(image(np.abs(signal)), image(np.angle(signal) * scale), "phase", unit, TIMES)


def test_integers_of_zero_and_half_a_circle_only() -> None:
    """Phases of 0 and pi, stored as 0 and 4095: one circle and two differ in the sign of every image."""
    stored = np.where(truth() < 0, 4095.0, 0.0)
    signed, _ = signed_series(image(np.abs(truth())), image(stored), "phase", "arbitrary", TIMES)
    np.testing.assert_allclose(np.asarray(signed.dataobj), truth(), atol=0.1)


def test_real_and_imaginary_parts() -> None:
    signal = complex_images()
    signed, note = signed_series(image(signal.real), image(signal.imag), "imag", None, TIMES)
    assert note is None
    np.testing.assert_allclose(np.asarray(signed.dataobj), truth(), atol=0.02)


@pytest.mark.parametrize("position", range(len(TIMES)))
def test_an_image_of_the_wrong_sign_is_refused(position: int) -> None:
    """Real and imaginary part of one image with the opposite sign: a rise without a fall, but not a recovery."""
    signal = complex_images(noise=1.0)
    signal[..., position] *= -1
    with pytest.raises(InputError, match="has the wrong sign"):
        signed_series(image(signal.real), image(signal.imag), "imag", None, TIMES)


def test_a_wrong_sign_that_leaves_a_rising_signal_is_refused() -> None:
    """T1 is 0.26 s; with the sign of the second image changed, the signal rises as with 1.3 s, and no phase objects."""
    times = np.array([0.05, 0.4, 1.1, 2.5])
    signal = 100 * (1 - 1.95 * np.exp(-times / 0.26)) * np.array([1, -1, 1, 1]) * np.ones((4, 4, 2, 1))
    assert (np.diff(signal) > 0).all()
    with pytest.raises(InputError, match=r"inversion time 0.4 s has the wrong sign.*100%"):
        signed_series(image(signal), image(0 * signal), "imag", None, times)


@pytest.mark.parametrize("noise", [1.0, 5.0, 12.0])
@pytest.mark.parametrize("n_images", [4, 6])
def test_right_signs_are_not_doubted(noise: float, n_images: int) -> None:
    signed, _ = restore_sign(complex_images(noise=noise)[..., :n_images])
    assert opposite_signs(signed, TIMES[:n_images]).max() < 0.1


def test_a_phase_that_means_nothing_is_noticed() -> None:
    rng = np.random.default_rng(0)
    noise = rng.uniform(-np.pi, np.pi, truth().shape)
    _, note = signed_series(image(np.abs(truth())), image(noise), "phase", "rad", TIMES)
    assert "contradicts an inversion recovery" in note


@pytest.mark.parametrize(("top", "unit"), [(20000.0, "arbitrary"), (4000.0, "Hz")])
def test_unknown_units_are_refused(top: float, unit: str) -> None:
    phase = np.linspace(-top, top, truth().size).reshape(truth().shape)
    with pytest.raises(InputError, match="neither radian nor"):
        signed_series(image(np.abs(truth())), image(phase), "phase", unit, TIMES)
