"""The contract of a signal model, as checks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Acquisition, InversionRecovery, MultiEcho
from qmri_bidsapp.data.bibliography import bundled_bibliography, cited_keys, format_references
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.testing.assertions import require, require_close, require_raises

Array = npt.NDArray[np.float64]
#: Amplitude of simulated signals, and the number of voxels where none is given.
AMPLITUDE, N_VOXELS = 100.0, 500
#: Step of finite differences relative to a parameter's scale.
STEP = 1e-6


@dataclass(frozen=True)
class ModelCase:
    """A model, a protocol that identifies it, and tissue.

    Attributes
    ----------
    model : SignalModel
    acquisition : Acquisition
        Of the model's `acquisition_type`.
    parameters : ndarray
        (n_voxels, n_parameters), in each parameter's unit.
    covariates : ndarray
        (n_voxels, n_covariates), in each covariate's unit.
    """

    model: SignalModel
    acquisition: Acquisition
    parameters: Array
    covariates: Array

    @classmethod
    def draw(
        cls, model: SignalModel, acquisition: Acquisition, parameters: npt.ArrayLike | None = None, *, seed: int = 0
    ) -> ModelCase:
        """Return a case; without parameters, they are drawn from the model's default prior, with an amplitude of 100.

        Raises
        ------
        ValueError
            If `parameters` is not (n_voxels, n_parameters).
        """
        rng = np.random.default_rng(seed)
        if parameters is None:
            tissue = model.default_prior().draw(N_VOXELS, rng)
            parameters = np.column_stack([np.full(N_VOXELS, AMPLITUDE), tissue])
        theta = np.asarray(parameters, dtype=np.float64)
        if theta.ndim != 2 or theta.shape[1] != len(model.parameters):
            raise ValueError(f"Parameters must have shape (n_voxels, {len(model.parameters)}), got {theta.shape}.")
        neutral = np.array([p.scale for p in model.covariates])
        covariates = neutral * np.random.default_rng(seed + 2).uniform(0.8, 1.2, (len(theta), len(neutral)))
        return cls(model, acquisition, theta, covariates)

    def columns(self, n: int) -> torch.Tensor:
        """Return (n, n_parameters + n_covariates) float64, as `SignalModel.signal` takes them."""
        return self.model.with_covariates(torch.tensor(self.parameters[:n]), torch.tensor(self.covariates[:n]))

    def signals(self, n: int, *, noise: float = 0.0, seed: int = 0) -> Array:
        """Return (n, n_measurements) signals with Gaussian noise, in percent of the largest signal."""
        clean = self.model.signal(self.columns(n), self.acquisition).numpy()
        sigma = noise / 100 * clean.max() / np.sqrt(np.array(self.acquisition.n_averages))
        return np.asarray(clean + sigma * np.random.default_rng(seed + 1).standard_normal(clean.shape))


def check_description(case: ModelCase) -> None:
    """Check that the model has title, source and needs, and its parameters names, units and ranges."""
    model = case.model
    is_name = re.fullmatch("[a-z0-9]+", model.name) is not None
    require(is_name, f"The name of a model must consist of a to z and 0 to 9, got {model.name!r}")
    for attribute in ("title", "reference", "needs"):
        require(bool(getattr(model, attribute, "")), f"Model {model.name} needs the attribute {attribute}")
    everything = (*model.parameters, *model.derived, *model.covariates)
    names = [parameter.name for parameter in everything]
    require(len(set(names)) == len(names), f"Names of parameters occur twice: {', '.join(names)}")
    for p in everything:
        require(p.bounds[0] < p.bounds[1], f"Bounds of {p.name} must ascend, got {p.bounds}")
        require(p.scale > 0, f"The scale of {p.name} must be positive, got {p.scale:g}")
        require(bool(p.description), f"Parameter {p.name} needs a description")
        require(bool(p.unit), f"Parameter {p.name} needs a unit")
    for p in model.covariates:
        require(p.bounds[0] < p.scale < p.bounds[1], f"The neutral value of {p.name} must be within its bounds")


def check_report(case: ModelCase) -> None:
    """Check that the model brings what reports show: methods text, references and display ranges."""
    model = case.model
    require(bool(model.methods), f"Model {model.name} needs the attribute methods, a sentence for the methods text")
    known = format_references(bundled_bibliography() + model.bibliography)
    missing = [key for key in cited_keys(model.methods) if key not in known]
    require(not missing, f"Model {model.name} cites {', '.join(missing)}; add BibTeX entries to its bibliography")
    for p in (*model.parameters[1:], *model.derived):
        if p.saved:
            require(p.display_range is not None, f"Parameter {p.name} is saved and needs a display_range")
        if p.display_range is not None:
            low, high = p.display_range
            require(low < high, f"The display range of {p.name} must ascend, got {p.display_range}")


def check_named_tissues(case: ModelCase) -> None:
    """Check that named tissues have parameters of the model, within their bounds, and a source."""
    bounds = {p.name: p.bounds for p in case.model.parameters}
    for tissue in case.model.tissues:
        require(bool(tissue.source), f"Tissue {tissue.name} needs a source")
        for name, value in tissue.values.items():
            require(name in bounds, f"Tissue {tissue.name} has {name}, but the parameters are {', '.join(bounds)}")
            low, high = bounds[name]
            require(low <= value <= high, f"{name} of {tissue.name} must be within {low:g} to {high:g}, got {value:g}")


def check_shape_and_dtype(case: ModelCase) -> None:
    """Check that signals have any leading shape, and the dtype of the parameters."""
    model, acquisition = case.model, case.acquisition
    for dtype in (torch.float32, torch.float64):
        theta = case.columns(6).to(dtype).reshape(2, 3, -1)
        signal, derived = model.signal(theta, acquisition), model.derive(theta)
        expected = (2, 3, acquisition.n_measurements)
        require(signal.shape == expected, f"The signal must have shape {expected}, got {tuple(signal.shape)}")
        require(signal.dtype == dtype, f"The signal of {dtype} parameters must be {dtype}, got {signal.dtype}")
        expected = (2, 3, len(model.derived))
        require(derived.shape == expected, f"Derived parameters must have shape {expected}, got {tuple(derived.shape)}")


def check_amplitude(case: ModelCase) -> None:
    """Check that the signal is proportional to the first parameter."""
    theta = case.columns(5)
    doubled = theta.clone()
    doubled[:, 0] *= 2
    found, expected = (case.model.signal(values, case.acquisition) for values in (doubled, theta))
    message = "The signal must be proportional to the first parameter"
    require_close(found, 2 * expected, rtol=1e-7, atol=1e-7, message=message)


def check_gradient(case: ModelCase) -> None:
    """Check that the Jacobian agrees with automatic differentiation and with central finite differences."""
    model, acquisition, theta = case.model, case.acquisition, case.columns(20)
    jacobian = model.jacobian(theta, acquisition)
    automatic = SignalModel.jacobian(model, theta, acquisition)
    message = "The Jacobian must agree with automatic differentiation"
    require_close(jacobian, automatic, rtol=1e-6, atol=1e-8, message=message)
    reach = float(model.signal(theta, acquisition).abs().max())
    for column, parameter in enumerate(model.parameters):
        step = torch.zeros(theta.shape[1], dtype=theta.dtype)
        step[column] = STEP * parameter.scale
        above, below = (model.signal(theta + sign * step, acquisition) for sign in (1, -1))
        difference = (above - below) / (2 * STEP)
        found = jacobian[..., column] * parameter.scale
        message = f"The derivative by {parameter.name} must agree with finite differences"
        require_close(found, difference, rtol=1e-4, atol=1e-5 * reach, message=message)


def check_batch(case: ModelCase) -> None:
    """Check that a voxel's signal does not depend on the voxels beside it."""
    theta = case.columns(7)
    together, alone = case.model.signal(theta, case.acquisition)[3], case.model.signal(theta[3], case.acquisition)
    message = "The signal of a voxel must not depend on the others"
    require_close(together, alone, rtol=1e-7, atol=1e-7, message=message)


def check_limits(case: ModelCase) -> None:
    """Check that signals are finite where any single parameter is on a bound."""
    theta = case.columns(5)
    for column, parameter in enumerate(case.model.parameters):
        for bound in parameter.bounds:
            at_bound = theta.clone()
            at_bound[:, column] = bound
            finite = bool(torch.isfinite(case.model.signal(at_bound, case.acquisition)).all())
            require(finite, f"The signal must be finite at {parameter.name} = {bound:g}, a bound")


def check_protocols(case: ModelCase) -> None:
    """Check that the model accepts the protocol of the case, and refuses one of another type."""
    model = case.model
    model.check(case.acquisition)
    own_type = issubclass(model.acquisition_type, MultiEcho)
    other = InversionRecovery((0.1, 0.5, 1.0, 2.0)) if own_type else MultiEcho((0.01, 0.02, 0.04, 0.08))
    message = f"Model {model.name} must refuse a protocol of type {type(other).__name__}"
    require_raises(ProtocolError, lambda: model.check(other), message=message)
    if model.acquisition_type in (MultiEcho, InversionRecovery):
        short = model.acquisition_type((0.1,))
        message = f"Model {model.name} must refuse a single measurement"
        require_raises(ProtocolError, lambda: model.check(short), saying="needs at least", message=message)


def check_covariates(case: ModelCase) -> None:
    """Check that covariates that are not given have their neutral values."""
    theta = torch.tensor(case.parameters[:4])
    neutral = torch.tensor([[p.scale for p in case.model.covariates]] * len(theta))
    found, expected = case.model.with_covariates(theta), case.model.with_covariates(theta, neutral)
    message = "Covariates that are not given must be neutral"
    require_close(found, expected, rtol=1e-7, message=message)


def check_prior(case: ModelCase) -> None:
    """Check that the default prior draws every parameter but the amplitude, within its bounds."""
    values = case.model.default_prior().draw(100, np.random.default_rng(0))
    parameters = case.model.parameters[1:]
    expected = (100, len(parameters))
    require(values.shape == expected, f"The default prior must draw {expected} values, got {values.shape}")
    for column, p in zip(values.T, parameters, strict=True):
        inside = bool(((column >= p.bounds[0]) & (column <= p.bounds[1])).all())
        require(inside, f"The default prior must draw {p.name} within {p.bounds}")


#: What every model must pass.
MODEL_CHECKS: tuple[Callable[[ModelCase], None], ...] = (
    check_description,
    check_report,
    check_named_tissues,
    check_shape_and_dtype,
    check_amplitude,
    check_batch,
    check_gradient,
    check_limits,
    check_protocols,
    check_covariates,
    check_prior,
)


def check_model(model: SignalModel, acquisition: Acquisition, parameters: npt.ArrayLike | None = None) -> None:
    """Check that a model keeps the contract of `SignalModel`.

    Parameters
    ----------
    model : SignalModel
    acquisition : Acquisition
        A protocol that identifies it, of its `acquisition_type`.
    parameters : array_like, optional
        (n_voxels, n_parameters) typical tissue, at least 20 voxels, in each parameter's unit; drawn from the model's
        default prior where None.

    Raises
    ------
    AssertionError
        At the first part of the contract that is broken; the message says what is needed and what was found.
    """
    case = ModelCase.draw(model, acquisition, parameters)
    for check in MODEL_CHECKS:
        check(case)
