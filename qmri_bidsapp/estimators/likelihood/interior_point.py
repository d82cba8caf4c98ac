"""Bounded non-linear least squares by an interior-point method, started from a dictionary."""

from __future__ import annotations

from typing import ClassVar

import torch

from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.solvers.interior_point import MAX_ITERATIONS, minimise_inside
from qmri_bidsapp.solvers.problem import Objective


class InteriorPoint(NonLinearLeastSquares):
    """Gauss-Newton steps with a logarithmic barrier at the bounds, from the best entries of a dictionary.

    The bounds are approached from inside alone, so that no parameter is caught on one on the way.
    """

    name: ClassVar[str] = "interior-point"
    title: ClassVar[str] = "Bounded non-linear least squares (interior point, logarithmic barrier)"
    reference: ClassVar[str] = "Nocedal and Wright 2006, Numerical Optimization, section 19.6"
    methods: ClassVar[str] = (
        "With the estimator interior-point, the bounds were approached from inside by a logarithmic barrier "
        "[@nocedal], from the same starting points."
    )
    bibliography: ClassVar[str] = """
    @article{nocedal,
      author = {Nocedal J, Wright SJ},
      year = {2006},
      title = {Numerical optimization, 2nd edition, section 19.6},
      journal = {Springer}
    }
    """

    def _minimise(
        self, objective: Objective, start: torch.Tensor, iterations: int = MAX_ITERATIONS
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Search inside the bounds; see the base class."""
        return minimise_inside(objective, start, self._bounds, iterations=iterations, batch=self._batch)

    def _leave_bounds(
        self, objective: Objective, scaled: torch.Tensor, cost: torch.Tensor, converged: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what was found: on its way the search has met no bound."""
        return scaled, cost, converged
