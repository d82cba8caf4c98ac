"""Closed-form facts of relaxometry."""

from __future__ import annotations

import math

import pytest
import torch

from qmri_bidsapp.core.acquisition import InversionRecovery, MultiEcho, T2Preparation
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.relaxometry import GradientEchoT2star, InversionRecoveryT1, PreparedT2, SpinEchoT2


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(("factor", "t1"), [(2.0, 1.0), (1.8, 0.6), (1.9, 3.0)])
def test_inversion_recovery_is_null_at_t1_ln_b(factor: float, t1: float) -> None:
    null = InversionRecovery((t1 * math.log(factor),))
    assert InversionRecoveryT1().signal(values(100.0, factor, t1), null).item() == pytest.approx(0.0, abs=1e-10)


def test_inversion_recovery_begins_at_b_minus_one_and_ends_at_a() -> None:
    protocol = InversionRecovery((1e-9, 50.0))
    signal = InversionRecoveryT1().signal(values(100.0, 1.9, 1.0), protocol)
    torch.testing.assert_close(signal, values(90.0, 100.0), rtol=1e-6, atol=1e-6)


def test_inversion_recovery_has_a_slope_from_above_at_zero_amplitude() -> None:
    """Otherwise a fit that touches the bound would stay there."""
    protocol = InversionRecovery((0.1, 5.0))
    jacobian = InversionRecoveryT1().jacobian(values(0.0, 2.0, 1.0), protocol)
    assert (jacobian[:, 0] > 0.5).all()
    assert jacobian.dtype == torch.float64


def test_restored_polarity_leaves_the_sign() -> None:
    times = (0.1, 0.5, 1.0, 3.0)
    signed = InversionRecoveryT1().signal(values(100.0, 2.0, 1.0), InversionRecovery(times, signed=True))
    torch.testing.assert_close(signed, 100 * (1 - 2 * torch.exp(-values(*times))))
    magnitude = InversionRecoveryT1().signal(values(100.0, 2.0, 1.0), InversionRecovery(times))
    torch.testing.assert_close(magnitude, signed.abs())
    theta = values(1.0, 2.0, 1.0, 0.0, 1.8, 0.5).reshape(2, 3)
    protocol = InversionRecovery(times, signed=True)
    automatic = SignalModel.jacobian(InversionRecoveryT1(), theta, protocol)
    torch.testing.assert_close(InversionRecoveryT1().jacobian(theta, protocol), automatic)
    assert InversionRecoveryT1().basins(theta, protocol).tolist() == [0, 0]


def test_basins_count_the_images_before_the_null() -> None:
    protocol = InversionRecovery((0.1, 0.5, 1.0, 3.0))
    theta = values(1.0, 2.0, 1.0, 1.0, 2.0, 0.1, 1.0, 2.0, 8.0).reshape(3, 3)
    # Nulls at 0.69 s, 0.069 s and 5.5 s.
    assert InversionRecoveryT1().basins(theta, protocol).tolist() == [2, 0, 4]


@pytest.mark.parametrize("model", [SpinEchoT2(), GradientEchoT2star()], ids=["t2", "t2star"])
def test_signal_halves_every_t_ln_2(model) -> None:
    protocol = MultiEcho(tuple(0.05 * math.log(2) * n for n in (1, 2, 3)))
    torch.testing.assert_close(model.signal(values(80.0, 0.05), protocol), values(40.0, 20.0, 10.0))


@pytest.mark.parametrize(
    ("model", "theta", "rate"),
    [(InversionRecoveryT1(), (1.0, 2.0, 0.8), 1.25), (SpinEchoT2(), (1.0, 0.05), 20.0)],
    ids=["t1", "t2"],
)
def test_rate_is_the_inverse_of_the_time(model, theta, rate: float) -> None:
    assert model.derive(values(*theta)).item() == pytest.approx(rate)


def test_prepared_t2_recovers_after_each_preparation() -> None:
    """Spin echo during the preparation, then T1 recovery for a delay: M0 (1 - e1) + M0 e1 exp(-T / T2)."""
    times, t2, e1 = (0.0, 0.025, 0.055, 0.1), 0.06, math.exp(-0.1 / 1.2)
    expected = [100 * (1 - e1 + e1 * math.exp(-time / t2)) for time in times]
    protocol = T2Preparation(times)
    found = PreparedT2().signal(values(100 * e1, t2, (1 - e1) / e1), protocol)
    torch.testing.assert_close(found, values(*expected))
    maps = NonLinearLeastSquares(PreparedT2()).fit(protocol).predict([expected])
    assert maps.estimate[0, 1] == pytest.approx(t2, rel=1e-3)
    # Without the offset T2 comes out too long.
    plain = NonLinearLeastSquares(SpinEchoT2()).fit(MultiEcho(times[1:])).predict([expected[1:]])
    assert plain.estimate[0, 1] > 1.1 * t2


def test_repeated_times_do_not_count_twice() -> None:
    with pytest.raises(ProtocolError, match="at least 3 distinct values of InversionTime, got 2"):
        InversionRecoveryT1().check(InversionRecovery((0.1, 0.1, 0.5)))
    with pytest.raises(ProtocolError, match="at least 3 distinct values of the preparation time, got 2"):
        PreparedT2().check(T2Preparation((0.0, 0.05, 0.05)))
    with pytest.raises(ProtocolError, match="at least 2 distinct values of EchoTime, got 1"):
        SpinEchoT2().check(MultiEcho((0.01, 0.01)))
