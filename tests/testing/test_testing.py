"""The checks find what breaks the contracts, and say what it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qmri_bidsapp.core.acquisition import MultiEcho
from qmri_bidsapp.core.parameters import NamedTissue, Parameter
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.relaxometry import SpinEchoT2
from qmri_bidsapp.testing import check_estimator, check_model

PROTOCOL = MultiEcho(tuple(0.01 * (echo + 1) for echo in range(16)))
T2 = np.linspace(0.03, 0.15, 40)
TISSUE = np.column_stack([np.full_like(T2, 100.0), T2])


class NoMethods(SpinEchoT2):
    methods = ""


class UnknownReference(SpinEchoT2):
    methods = "T2 was estimated [@nobody]."


class NoDisplayRange(SpinEchoT2):
    parameters = (SpinEchoT2.parameters[0], Parameter("t2", "s", (0.001, 4.0), 0.1, "T2"))


class TissueOutOfBounds(SpinEchoT2):
    tissues = (NamedTissue("Air", {"t2": 0.0}, "none"),)


class OtherDtype(SpinEchoT2):
    def signal(self, theta, acquisition):
        return super().signal(theta, acquisition).double()


class Offset(SpinEchoT2):
    def signal(self, theta, acquisition):
        return super().signal(theta, acquisition) + 1


class WrongJacobian(SpinEchoT2):
    def jacobian(self, theta, acquisition):
        return 1.01 * super().jacobian(theta, acquisition)


class HiddenConstant(SpinEchoT2):
    """Automatic differentiation is wrong as well where a parameter is detached."""

    def signal(self, theta, acquisition):
        return super().signal(torch.cat([theta[..., :1], theta[..., 1:].detach()], dim=-1), acquisition)

    def jacobian(self, theta, acquisition):
        return SignalModel.jacobian(self, theta, acquisition)


class Mixing(SpinEchoT2):
    def signal(self, theta, acquisition):
        signal = super().signal(theta, acquisition)
        return signal * (1 + 0.01 * (signal[..., :1].mean() / signal[..., :1] - 1))


class AcceptsAnything(SpinEchoT2):
    def check(self, acquisition):
        pass


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NoMethods, "needs the attribute methods"),
        (UnknownReference, "cites nobody"),
        (NoDisplayRange, "t2 is saved and needs a display_range"),
        (TissueOutOfBounds, "t2 of Air must be within 0.001 to 4, got 0"),
        (OtherDtype, "parameters must be torch.float32, got torch.float64"),
        (Offset, "proportional to the first parameter"),
        (WrongJacobian, "must agree with automatic differentiation"),
        (HiddenConstant, "derivative by t2 must agree with finite differences"),
        (Mixing, "must not depend on the others"),
        (AcceptsAnything, "must refuse a protocol of type InversionRecovery"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_model_is_found(model: type[SpinEchoT2], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_model(model(), PROTOCOL, TISSUE)


def test_a_good_model_passes() -> None:
    assert check_model(SpinEchoT2(), PROTOCOL) is None


def test_parameters_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have shape \(n_voxels, 2\), got \(40, 1\)"):
        check_model(SpinEchoT2(), PROTOCOL, TISSUE[:, :1])


def by_position(n: int) -> np.ndarray:
    """An error of T2 that grows with the place in the call, too small to be seen without noise."""
    return np.outer(np.arange(n) / n, [0.0, 4.5e-4, 0.0])


def altered(**changes):
    """A least-squares estimator whose maps are changed by functions of (maps, signals)."""

    class Altered(NonLinearLeastSquares):
        def predict(self, signals, **options):
            maps = super().predict(signals, **options)
            for name, change in changes.items():
                getattr(maps, name)[...] = change(maps, np.asarray(signals))
            return maps

    return Altered


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": lambda maps, signals: np.nan}, "Standard deviations must be finite where the status is OK"),
        ({"estimate": lambda maps, signals: 1.1 * maps.estimate}, "99 % of the errors without noise"),
        ({"estimate": lambda maps, signals: np.nan_to_num(maps.estimate)}, "Estimates of bad voxels must be NaN"),
        ({"estimate": lambda maps, signals: maps.estimate + by_position(len(signals))}, "must not depend on the order"),
        (
            {"estimate": lambda maps, signals: maps.estimate * (1 + 1e-3 * np.random.default_rng().random())},
            "The same call must give the same estimates",
        ),
    ],
    ids=["no-std", "biased", "zeros", "order", "random"],
)
def test_a_broken_estimator_is_found(changes, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_estimator(altered(**changes)(SpinEchoT2()), PROTOCOL, TISSUE)


def test_a_good_estimator_passes() -> None:
    assert check_estimator(NonLinearLeastSquares(SpinEchoT2()), PROTOCOL, TISSUE) is None
