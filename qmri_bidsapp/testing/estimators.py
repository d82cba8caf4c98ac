"""The contract of an estimator, as checks."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.core.parameters import on_physical_limits
from qmri_bidsapp.data.bibliography import bundled_bibliography, cited_keys, format_references
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.trained import TrainedEstimator
from qmri_bidsapp.testing.assertions import require, require_close, require_raises
from qmri_bidsapp.testing.models import ModelCase

#: Deviation of an estimate on a bound, relative to the parameter's scale: interior points stop near the bound.
BOUND_MARGIN = 2e-4
#: Two estimates of a voxel are tied if a parameter differs by more than this part of its scale, and their sums of
#: squares by less than the noise variance: the data do not decide between two minima. Largest share of such voxels.
DISTINCT, MAX_TIED = 1e-2, 0.01


@dataclass(frozen=True)
class EstimatorCase:
    """A fitted estimator, and tissue that its protocol identifies.

    Attributes
    ----------
    estimator : Estimator
        After `fit` with the protocol of `tissue`.
    tissue : ModelCase
        Of the estimator's model.
    """

    estimator: Estimator
    tissue: ModelCase

    def predict(
        self, signals: npt.ArrayLike, *, noise_std: npt.ArrayLike | None = None, order: npt.ArrayLike | None = None
    ) -> ParameterMaps:
        """Estimate signals of the first voxels of the case, with their covariates, optionally in another order."""
        known = self.tissue.covariates[: len(np.asarray(signals))]
        known = known if order is None else known[np.asarray(order)]
        return self.estimator.predict(signals, noise_std=noise_std, covariates=known)


def _at_bound_margin(maps: ParameterMaps) -> npt.NDArray[np.float64]:
    """Return (n_voxels, n_parameters) deviations that are allowed where an estimate is on a bound."""
    scale = np.array([p.scale for p in maps.parameters])
    return np.where(((maps.status == Status.AT_BOUND) | _on_limit(maps))[:, None], BOUND_MARGIN * scale, 0.0)


def _on_limit(maps: ParameterMaps) -> npt.NDArray[np.bool_]:
    """Return (n_voxels,) whether a parameter is on a physical limit: it has no standard deviation."""
    lower, upper = on_physical_limits(maps.parameters, maps.estimate)
    return np.asarray((lower | upper).any(axis=1))


def _is_tied(
    case: EstimatorCase,
    signals: npt.NDArray[np.float64],
    first: ParameterMaps,
    second: ParameterMaps,
    order: npt.NDArray[np.intp],
) -> npt.NDArray[np.bool_]:
    """Return which voxels have two different estimates that explain their signals equally well, (n_voxels,)."""
    model, n = case.tissue.model, len(case.tissue.model.parameters)
    known = torch.tensor(case.tissue.covariates[order])
    scale, sums = np.array([p.scale for p in model.parameters]), []
    for maps in (first, second):
        theta = model.with_covariates(torch.tensor(maps.estimate[:, :n], dtype=torch.float64), known)
        sums.append(((model.signal(theta, case.tissue.acquisition).numpy() - signals) ** 2).sum(axis=1))
    distance = np.abs(first.estimate - second.estimate)[:, 1:n] / scale[1:]
    like = np.abs(sums[0] - sums[1]) < sums[0] / signals.shape[1]
    return np.asarray(like & (distance > DISTINCT).any(axis=1))


def check_metadata(case: EstimatorCase) -> None:
    """Check name, title, source, kind of standard deviation and references."""
    estimator = case.estimator
    for attribute in ("name", "title", "std_kind", "reference"):
        require(bool(getattr(estimator, attribute, "")), f"An estimator needs the attribute {attribute}")
    require(type(estimator).supports(estimator.model), f"{estimator.name} must support model {estimator.model.name}")
    known = format_references(bundled_bibliography() + estimator.bibliography)
    missing = [key for key in cited_keys(estimator.methods) if key not in known]
    require(not missing, f"{estimator.name} cites {', '.join(missing)}; add BibTeX entries to its bibliography")


def check_maps(case: EstimatorCase) -> None:
    """Check that maps are float32, hold all parameters within bounds, and have a standard deviation where OK."""
    model, n = case.estimator.model, 20
    maps = case.predict(case.tissue.signals(n, noise=1.0))
    require(maps.parameters == (*model.parameters, *model.derived), "Maps must have all parameters, then derived ones")
    for name in ("estimate", "std"):
        dtype = getattr(maps, name).dtype
        require(dtype == np.float32, f"The {name} must be float32, got {dtype}")
    fine = maps.status == Status.OK
    require(np.isfinite(maps.estimate[fine]).all(), "Estimates must be finite where the status is OK")
    require(
        np.isfinite(maps.std[fine & ~_on_limit(maps)]).all(),
        "Standard deviations must be finite where the status is OK and no parameter is on a physical limit",
    )
    low, high = (np.array([p.bounds[i] for p in model.parameters[1:]]) for i in (0, 1))
    inside, margin = maps.estimate[fine][:, 1 : len(model.parameters)], BOUND_MARGIN * (high - low)
    within = ((inside >= low - margin) & (inside <= high + margin)).all()
    require(within, "Estimates must be within the bounds of their parameters")


def check_recovery(case: EstimatorCase) -> None:
    """Check that noise-free signals give their parameters back, unless a prior learned in training shifts them."""
    if isinstance(case.estimator, TrainedEstimator):
        return
    theta = case.tissue.parameters
    maps = case.predict(case.tissue.signals(len(theta)))
    scale = np.array([p.scale for p in case.estimator.model.parameters])
    scale[0] = np.abs(theta[:, 0]).max()
    error = float(np.percentile(np.abs(maps.estimate[:, : len(scale)] - theta) / scale, 99))
    require(error < 5e-3, f"99 % of the errors without noise must be below 0.005 of the scale, got {error:.2g}")
    share = float((maps.status == Status.OK).mean())
    require(share > 0.99, f"The status must be OK in 99 % of the voxels without noise, got {share:.1%}")


def check_order_and_repetition(case: EstimatorCase) -> None:
    """Check that the order of voxels does not matter, and the same call gives the same result to the bit."""
    signals = case.tissue.signals(300, noise=2.0)
    order = np.random.default_rng(3).permutation(len(signals))
    first, second = case.predict(signals), case.predict(signals[order], order=order)
    # Rounding differs with the batch; along what the data hardly determine, by a small part of the error bar.
    margin = 0.05 * np.nan_to_num(first.std) + _at_bound_margin(first) + 1e-6
    tied = _is_tied(case, signals[order], first.part(order), second, order)
    message = "Estimates must not depend on the order of the voxels"
    share = float(tied.mean())
    require(share <= MAX_TIED, f"{message}: {share:.1%} of the voxels end in another minimum")
    same = ~tied
    require_close(
        second.estimate[same], first.estimate[order][same], rtol=2e-3, atol=margin[order][same], message=message
    )
    again = case.predict(signals)
    require(
        np.array_equal(again.estimate, first.estimate, equal_nan=True), "The same call must give the same estimates"
    )


def check_bad_voxels(case: EstimatorCase) -> None:
    """Check that voxels without a signal or with NaN are NaN with a status, and leave the others as they are."""
    signals = case.tissue.signals(10, noise=1.0)
    # Spatial estimators take one noise level from all voxels where none is given.
    noise = 1.0 if case.estimator.is_spatial else None
    clean = case.predict(signals, noise_std=noise)
    spoilt = signals.copy()
    spoilt[2, 1], spoilt[5], spoilt[7] = np.nan, 0.0, np.inf
    maps = case.predict(spoilt, noise_std=noise)
    bad, found = [2, 5, 7], [Status(value).name for value in maps.status[[2, 5, 7]]]
    expected = ["INVALID_INPUT", "NO_SIGNAL", "INVALID_INPUT"]
    require(found == expected, f"NaN, zeros and infinity must have the status {expected}, got {found}")
    require(np.isnan(maps.estimate[bad]).all(), "Estimates of bad voxels must be NaN")
    require(np.isnan(maps.std[bad]).all(), "Standard deviations of bad voxels must be NaN")
    others = [0, 1, 3, 4, 6, 8, 9]
    margin = 0.01 * np.nan_to_num(clean.std) + _at_bound_margin(clean) + 1e-7
    message = "A bad voxel must not change the others"
    require_close(maps.estimate[others], clean.estimate[others], rtol=1e-4, atol=margin[others], message=message)


def check_unknown_noise(case: EstimatorCase) -> None:
    """Check that a noise level that is no positive number is unknown: it makes no estimate exact."""
    maps = case.predict(case.tissue.signals(3, noise=1.0), noise_std=[0.0, np.nan, -1.0])
    require(np.isfinite(maps.estimate).all(), "Estimates must be finite where the noise level is unknown")
    require(not (maps.std == 0).any(), "A noise level of zero must not give a standard deviation of zero")


def check_signal_scale(case: EstimatorCase) -> None:
    """Check that the unit of the signals scales the amplitude and nothing else."""
    signals = case.tissue.signals(50, noise=1.0)
    first, second = case.predict(signals), case.predict(signals * 4096)
    message = "The amplitude must scale with the signals"
    require_close(second.estimate[:, 0], 4096 * first.estimate[:, 0], rtol=1e-3, message=message)
    message = "Parameters but the amplitude must not depend on the unit of the signals"
    require_close(second.estimate[:, 1:], first.estimate[:, 1:], rtol=1e-3, atol=1e-6, message=message)
    both = np.isfinite(first.std) & np.isfinite(second.std)
    unit = np.where(np.arange(first.std.shape[1]) == 0, 4096.0, 1.0)
    message = "The standard deviation of the amplitude must scale with the signals, the others must not"
    require_close(second.std[both], (first.std * unit)[both], rtol=1e-2, message=message)


def check_pickling(case: EstimatorCase) -> None:
    """Check that a copy by pickle gives the same estimates to the bit."""
    signals = case.tissue.signals(20, noise=1.0)
    copy = pickle.loads(pickle.dumps(case.estimator))
    known = case.tissue.covariates[: len(signals)]
    found, expected = copy.predict(signals, covariates=known), case.predict(signals)
    same = np.array_equal(found.estimate, expected.estimate, equal_nan=True)
    require(same, "A copy by pickle must give the same estimates")


def check_refusals(case: EstimatorCase) -> None:
    """Check that signals of a wrong shape, and estimates before `fit`, are refused."""
    estimator, n = case.estimator, case.tissue.acquisition.n_measurements
    message = "Signals with a wrong number of measurements must be refused"
    require_raises(ValueError, lambda: estimator.predict(np.ones((4, n + 90))), saying="shape", message=message)
    wrong = np.ones((4, len(estimator.model.covariates) + 9))
    message = "Covariates of a wrong shape must be refused"
    require_raises(
        ValueError, lambda: estimator.predict(np.ones((4, n)), covariates=wrong), saying="ovariates", message=message
    )
    unfitted = type(estimator)(estimator.model)
    message = "An estimate before fit must be refused"
    require_raises(ProtocolError, lambda: unfitted.predict(np.ones((4, n))), saying="call fit", message=message)


def check_no_signal(case: EstimatorCase) -> None:
    """Check that series without any signal are estimated without an error."""
    maps = case.predict(np.zeros((3, case.tissue.acquisition.n_measurements)))
    require(maps.counts() == {"NO_SIGNAL": 3}, f"Three voxels of zeros must be NO_SIGNAL, got {maps.counts()}")


#: What every estimator must pass.
ESTIMATOR_CHECKS: tuple[Callable[[EstimatorCase], None], ...] = (
    check_metadata,
    check_maps,
    check_recovery,
    check_order_and_repetition,
    check_bad_voxels,
    check_unknown_noise,
    check_signal_scale,
    check_pickling,
    check_refusals,
    check_no_signal,
)


def check_estimator(
    estimator: Estimator, acquisition: Acquisition, parameters: npt.ArrayLike | None = None, *, seed: int = 0
) -> None:
    """Check that an estimator keeps the contract of `Estimator`; it is fitted to the protocol.

    Parameters
    ----------
    estimator : Estimator
    acquisition : Acquisition
        A protocol that identifies its model.
    parameters : array_like, optional
        (n_voxels, n_parameters) tissue that the protocol identifies well, at least 20 voxels, in each parameter's unit;
        drawn from the model's default prior where None.
    seed : int
        For `Estimator.fit`.

    Raises
    ------
    AssertionError
        At the first part of the contract that is broken; the message says what is needed and what was found.
    """
    tissue = ModelCase.draw(estimator.model, acquisition, parameters)
    case = EstimatorCase(estimator.fit(acquisition, seed=seed), tissue)
    for check in ESTIMATOR_CHECKS:
        check(case)
