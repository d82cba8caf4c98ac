"""Bounded non-linear least squares by an interior-point method, started from a dictionary."""

from __future__ import annotations

from typing import ClassVar

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.likelihood.scaled import ScaledModel
from qmri_bidsapp.estimators.likelihood.search import MultiStartSearch
from qmri_bidsapp.estimators.likelihood.starts import starts_for
from qmri_bidsapp.solvers.interior_point import minimise_inside


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

    def _prepare(self, acquisition: Acquisition, seed: int) -> None:
        """Compute the dictionary. A search from inside touches no bound on its way, so that it need not restart."""
        self.problem = ScaledModel(self.model, acquisition, self.device)
        starts = starts_for(self.model, acquisition, self.device)
        self.search = MultiStartSearch(
            self.problem, starts, solver=minimise_inside, restarts=False, iterations=self.max_iterations
        )
