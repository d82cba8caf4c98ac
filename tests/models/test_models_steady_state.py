"""Steady-state signals against closed forms of the literature."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from qmri_bidsapp.core.acquisition import MultiEcho, SpoiledGradientEcho
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.models.steady_state import MagnetizationTransferSaturation, VariableFlipAngleT1

ANGLES = SpoiledGradientEcho((3.0, 20.0), (0.015, 0.015))
#: MT-on, PDw, T1w as in the sample data of qMRLab.
MTS = SpoiledGradientEcho((6.0, 20.0, 6.0), (0.028, 0.018, 0.028), (False, False, True))


def signal(model, protocol: SpoiledGradientEcho, *columns) -> np.ndarray:
    theta = torch.tensor(np.stack(np.broadcast_arrays(*columns), axis=-1), dtype=torch.float64)
    return model.signal(theta, protocol).numpy()


def helms(pd_weighted, t1_weighted, mt_weighted, protocol: SpoiledGradientEcho = MTS):
    """T1 and MTsat, percent, by the formulas of Helms et al. 2008 for small nominal flip angles."""
    pd_angle, t1_angle, mt_angle = np.radians(protocol.flip_angle)
    pd_time, t1_time, mt_time = protocol.repetition_time
    r1 = (t1_weighted * t1_angle / t1_time - pd_weighted * pd_angle / pd_time) / (
        2 * (pd_weighted / pd_angle - t1_weighted / t1_angle)
    )
    amplitude = (
        pd_weighted
        * t1_weighted
        * (pd_time * t1_angle / pd_angle - t1_time * pd_angle / t1_angle)
        / (t1_weighted * pd_time * t1_angle - pd_weighted * t1_time * pd_angle)
    )
    return 1 / r1, 100 * ((amplitude * mt_angle / mt_weighted - 1) * r1 * mt_time - mt_angle**2 / 2)


def test_signal_is_largest_at_the_ernst_angle() -> None:
    t1, time = 1.1, 0.02
    ernst = np.degrees(np.arccos(np.exp(-time / t1)))
    around = SpoiledGradientEcho((ernst - 0.1, ernst, ernst + 0.1), (time,) * 3)
    below, top, above = signal(VariableFlipAngleT1(), around, 100.0, t1, 1.0)
    assert top > below
    assert top > above
    # Fully relaxed, a pulse of 90 degrees gives all there is.
    relaxed = SpoiledGradientEcho((90.0,), (5.0,))
    assert signal(VariableFlipAngleT1(), relaxed, 100.0, 0.1, 1.0)[0] == pytest.approx(100.0)


@pytest.mark.parametrize("b1", [0.7, 1.0, 1.3])
def test_t1_agrees_with_the_linear_form_of_the_ernst_equation(b1: float) -> None:
    """S / sin a = E1 S / tan a + M0 (1 - E1), with the effective angles (Deoni et al. 2003)."""
    t1 = np.linspace(0.5, 4.0, 60)
    values = signal(VariableFlipAngleT1(), ANGLES, 500.0, t1, b1)
    angle = b1 * np.radians(ANGLES.flip_angle)
    y, x = values / np.sin(angle), values / np.tan(angle)
    slope = (y[:, 1] - y[:, 0]) / (x[:, 1] - x[:, 0])
    np.testing.assert_allclose(-0.015 / np.log(slope), t1, rtol=1e-9)
    estimator = NonLinearLeastSquares(VariableFlipAngleT1()).fit(ANGLES)
    maps = estimator.predict(values, covariates=np.full((60, 1), b1))
    assert (maps.status == Status.OK).all()
    np.testing.assert_allclose(maps.estimate[:, 1], t1, rtol=2e-3)
    np.testing.assert_allclose(maps.estimate[:, 0], 500, rtol=2e-3)
    # An ignored transmit field goes into T1 with its square.
    ignored = estimator.predict(values).estimate[:, 1] / t1
    np.testing.assert_allclose(ignored, b1**2, rtol=0.03)


def test_two_images_have_no_residual_but_known_noise_gives_the_propagated_error() -> None:
    """Error propagation through the linear form, by finite differences."""
    values = signal(VariableFlipAngleT1(), ANGLES, 500.0, 1.2, 0.9)[None]

    def closed_form(s: np.ndarray) -> float:
        angle = 0.9 * np.radians(ANGLES.flip_angle)
        y, x = s / np.sin(angle), s / np.tan(angle)
        return float(-0.015 / np.log((y[1] - y[0]) / (x[1] - x[0])))

    slope = [(closed_form(values[0] + h) - closed_form(values[0] - h)) / 2e-4 for h in 1e-4 * np.eye(2)]
    estimator = NonLinearLeastSquares(VariableFlipAngleT1()).fit(ANGLES)
    maps = estimator.predict(values, noise_std=0.2, covariates=[[0.9]])
    assert maps.std[0, 1] == pytest.approx(0.2 * np.hypot(*slope), rel=0.01)
    assert np.isnan(estimator.predict(values, covariates=[[0.9]]).std).all()


def test_saturation_agrees_with_the_formulas_of_the_paper() -> None:
    """They hold for small angles: exactly in the limit, and within 2 per cent for angles in use."""
    t1, mtsat = (axis.ravel() for axis in np.meshgrid(np.linspace(0.6, 3.0, 9), np.linspace(0.5, 5.0, 9)))
    model = MagnetizationTransferSaturation()
    tiny = SpoiledGradientEcho((0.8, 2.4, 0.8), (0.002, 0.002, 0.002), MTS.mt_pulse)
    for protocol, tolerance in ((tiny, 1e-3), (MTS, 0.025)):
        paper_t1, paper_mtsat = helms(*signal(model, protocol, 300.0, t1, mtsat, 1.0).T, protocol)
        np.testing.assert_allclose(paper_t1, t1, rtol=tolerance)
        np.testing.assert_allclose(paper_mtsat, mtsat, rtol=tolerance)


@pytest.mark.parametrize("b1", [0.75, 1.2])
def test_transmit_field_is_corrected_as_in_the_paper(b1: float) -> None:
    """Nominal flip angles leave the factor (1 - 0.4) / (1 - 0.4 B1) to be applied, and T1 times B1 squared."""
    paper_t1, paper_mtsat = helms(*signal(MagnetizationTransferSaturation(), MTS, 300.0, 1.0, 3.0, b1))
    assert paper_mtsat * (1 - 0.4) / (1 - 0.4 * b1) == pytest.approx(3.0, rel=0.025)
    assert paper_t1 / b1**2 == pytest.approx(1.0, rel=0.025)


def test_saturation_is_the_steady_state_of_repeated_pulses() -> None:
    """Bloch's equation step by step: saturation, excitation, recovery, until nothing changes."""
    t1, mtsat, angle, time = 0.9, 2.0, np.radians(6.0), 0.028
    magnetisation = 1.0
    for _ in range(2000):
        excited = magnetisation * (1 - mtsat / 100)
        magnetisation = 1 + (excited * np.cos(angle) - 1) * np.exp(-time / t1)
    found = signal(MagnetizationTransferSaturation(), MTS, 1.0, t1, mtsat, 1.0)[2]
    # Where the pulse stands within the repetition is a matter of second order.
    assert found == pytest.approx(excited * np.sin(angle), rel=0.03)


def test_three_images_are_solved_exactly_over_the_range_of_tissue() -> None:
    t1, mtsat = (axis.ravel() for axis in np.meshgrid(np.geomspace(0.3, 5.0, 40), np.linspace(-0.1, 8.0, 40)))
    model = MagnetizationTransferSaturation()
    for b1 in (0.7, 1.0, 1.3):
        values = signal(model, MTS, 800.0, t1, mtsat, b1)
        maps = NonLinearLeastSquares(model).fit(MTS).predict(values, covariates=np.full((t1.size, 1), b1))
        assert (maps.status == Status.OK).mean() > 0.995
        np.testing.assert_allclose(maps.estimate[:, 1], t1, rtol=0.01)
        np.testing.assert_allclose(maps.estimate[:, 2], mtsat, atol=0.02)
        np.testing.assert_allclose(maps.estimate[:, 3], 1 / t1, rtol=0.01)


def test_protocols_that_identify_nothing_are_refused() -> None:
    with pytest.raises(ProtocolError, match=r"2 distinct values of FlipAngle, got 1 \(6, 6 degree\)"):
        VariableFlipAngleT1().check(SpoiledGradientEcho((6.0, 6.0), (0.01, 0.01)))
    with pytest.raises(ProtocolError, match="without a magnetization transfer pulse, but MTState is true"):
        VariableFlipAngleT1().check(MTS)
    mtsat = MagnetizationTransferSaturation()
    with pytest.raises(ProtocolError, match="needs an image with a magnetization transfer pulse"):
        mtsat.check(SpoiledGradientEcho((6.0, 20.0, 30.0), (0.02,) * 3))
    with pytest.raises(ProtocolError, match="FlipAngle without a magnetization transfer pulse, got 1"):
        mtsat.check(SpoiledGradientEcho((6.0, 6.0, 20.0), (0.02,) * 3, (False, True, True)))
    with pytest.raises(ProtocolError, match="longer repetition times or larger flip angles"):
        mtsat.check(SpoiledGradientEcho((2.0, 4.0, 2.0), (0.004,) * 3, (False, False, True)))
    with pytest.raises(ProtocolError, match="needs a SpoiledGradientEcho protocol, got MultiEcho"):
        VariableFlipAngleT1().check(MultiEcho((0.01, 0.02)))


def test_real_head_agrees_with_the_formulas_of_the_paper(real: Path) -> None:
    """Medians over the brain of the sample data of qMRLab, and of the plausible range."""
    names = ("flip-1_mt-off", "flip-2_mt-off", "flip-1_mt-on")
    anat = real / "sub-mtsat" / "anat"
    images = [np.asarray(nib.load(anat / f"sub-mtsat_{name}_MTS.nii.gz").dataobj, dtype=float) for name in names]
    values = np.stack(images, axis=-1)[40:90:2, 40:90:2, 40:70:2].reshape(-1, 3)
    values = values[values.min(axis=1) > 0.3 * np.percentile(values, 99)]
    maps = NonLinearLeastSquares(MagnetizationTransferSaturation()).fit(MTS).predict(values)
    inside = maps.status == Status.OK
    assert inside.mean() > 0.98
    paper_t1, paper_mtsat = helms(*values[inside].T)
    assert np.median(np.abs(maps.estimate[inside, 1] / paper_t1 - 1)) < 0.02
    assert np.median(np.abs(maps.estimate[inside, 2] / paper_mtsat - 1)) < 0.03
    assert 1.5 < np.median(maps.estimate[inside, 2]) < 5
