"""Global search over the non-linear parameters, convex fractions, then polish of all parameters."""

from __future__ import annotations

from typing import ClassVar

import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
from qmri_bidsapp.estimators.likelihood.scaled import ScaledModel
from qmri_bidsapp.estimators.likelihood.search import MultiStartSearch
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.mixture import Mixture
from qmri_bidsapp.solvers.differential_evolution import evolve
from qmri_bidsapp.solvers.levenberg_marquardt import MAX_ITERATIONS
from qmri_bidsapp.solvers.nonnegative import nonnegative_least_squares
from qmri_bidsapp.solvers.problem import Bounds

#: Members of a population for each non-linear parameter.
MEMBERS_PER_PARAMETER = 6
#: Values that a generation evaluates at a time: enough to hide the cost of a call, few enough for the memory.
SEARCH_VALUES = 2**22


class Mix(NonLinearLeastSquares):
    """Microstructure imaging of crossings (MIX), for models whose signal is a mixture.

    Differential evolution searches the non-linear parameters. For each candidate the amounts of the mixed signals,
    which cannot be negative, follow from a convex problem that is solved exactly. The best members are polished in all
    parameters by Levenberg-Marquardt. It needs no starting point, so that it can show whether other estimators found
    the lowest minimum; it ignores known directions.

    Parameters
    ----------
    model, device, max_iterations
        As for `NonLinearLeastSquares`.
    generations : int
        Generations of the evolution; more search more thoroughly.
    n_polished : int
        Members of the last population that are polished: many, after few generations, as minima may differ little in
        depth.

    Raises
    ------
    UsageError
        If there is no generation or no member to polish.
    """

    name: ClassVar[str] = "mix"
    title: ClassVar[str] = "Global search, convex fractions and polish (MIX)"
    reference: ClassVar[str] = "Farooq et al. 2016, Sci Rep 6:38927"
    methods: ClassVar[str] = (
        "With the estimator mix, starting points came from a global search in place of the dictionary: differential "
        "evolution [@evolution] over the non-linear parameters, with the fractions of compartments from "
        "non-negative least squares [@mix]."
    )
    bibliography: ClassVar[str] = """
    @article{evolution,
      author = {Storn R, Price K},
      year = {1997},
      title = {Differential evolution - a simple and efficient heuristic for global optimization over continuous
        spaces},
      journal = {Journal of Global Optimization},
      volume = {11},
      pages = {341-359},
      doi = {10.1023/A:1008202821328}
    }
    @article{mix,
      author = {Farooq H, Xu J, Nam JW, Keefe DF, Yacoub E, Georgiou T, Lenglet C},
      year = {2016},
      title = {Microstructure imaging of crossing (MIX) white matter fibers from diffusion MRI},
      journal = {Scientific Reports},
      volume = {6},
      pages = {38927},
      doi = {10.1038/srep38927}
    }
    """

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Return whether the model mixes signals, in fractions that are linear once the other parameters are known."""
        return bool(model.mixing)

    def __init__(
        self,
        model: SignalModel,
        *,
        device: str = "cpu",
        max_iterations: int = MAX_ITERATIONS,
        generations: int = 10,
        n_polished: int = 10,
    ) -> None:
        super().__init__(model, device=device, max_iterations=max_iterations)
        if min(generations, n_polished) < 1:
            raise UsageError(
                "A global search needs at least one generation and one member to polish, got "
                f"generations = {generations}, n_polished = {n_polished}."
            )
        self.generations, self.n_polished = generations, n_polished

    def _prepare(self, acquisition: Acquisition, seed: int) -> None:
        """Prepare the global search; `seed` is that of its random numbers."""
        self.problem = ScaledModel(self.model, acquisition, self.device)
        starts = GlobalStarts(
            self.model,
            acquisition,
            self.device,
            seed,
            generations=self.generations,
            n_starts=self.n_polished,
        )
        self.search = MultiStartSearch(self.problem, starts, iterations=self.max_iterations)


class GlobalStarts:
    """Finds starting points by differential evolution, whatever the voxel.

    Parameters
    ----------
    model : SignalModel
        With linear fractions.
    acquisition : Acquisition
    device : str
    seed : int
    generations : int
    n_starts : int
        Members of the last population that are starting points.
    """

    n_scout = 0

    def __init__(
        self,
        model: SignalModel,
        acquisition: Acquisition,
        device: str,
        seed: int,
        *,
        generations: int,
        n_starts: int,
    ) -> None:
        self._generations, self._n_starts = generations, n_starts
        self._acquisition, self._mixture, self._seed = acquisition, Mixture(model), seed
        searched = [model.parameters[i] for i in self._mixture.nonlinear]
        self._chosen = torch.tensor(self._mixture.nonlinear, device=device)
        self._n_parameters = len(model.parameters)
        lower, upper = (torch.tensor([p.bounds[i] for p in searched], device=device) for i in (0, 1))
        self._bounds = Bounds(lower, upper, torch.tensor([p.is_periodic for p in searched], device=device))
        self._root_averages = torch.tensor(acquisition.n_averages, dtype=torch.float32, device=device).sqrt()

    def __call__(self, target: torch.Tensor, directions: torch.Tensor | None = None) -> torch.Tensor:
        """Return the best candidates with their amounts; see `starts.Starts`."""
        n_values = MEMBERS_PER_PARAMETER * len(self._chosen) * (len(self._mixture.linear) + 1) * target.shape[1]
        return torch.cat([self._search(part) for part in torch.split(target, max(1, SEARCH_VALUES // n_values))], dim=1)

    def _search(self, target: torch.Tensor) -> torch.Tensor:
        """Return starts (n_starts, n, n_parameters)."""

        def cost(candidates: torch.Tensor) -> torch.Tensor:
            _, signals, vector, amounts = self._solve(candidates, target)
            residual = vector - (amounts.unsqueeze(1) @ signals).squeeze(1)
            return residual.square().sum(-1).reshape(candidates.shape[:2])

        population = MEMBERS_PER_PARAMETER * len(self._chosen)
        members, _ = evolve(
            cost, len(target), self._bounds, population=population, generations=self._generations, seed=self._seed
        )
        best = members[:, : self._n_starts]
        theta, _, _, amounts = self._solve(best, target)
        return self._mixture.combine(theta, amounts).reshape(*best.shape[:2], self._n_parameters).transpose(0, 1)

    def _solve(
        self, candidates: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return theta, signals of the corners, targets and amounts, (n * k, ...) each, for (n, k, d) candidates."""
        flat = candidates.reshape(-1, len(self._chosen))
        theta = torch.zeros(len(flat), self._n_parameters, device=flat.device).index_copy(1, self._chosen, flat)
        signals = self._mixture.signals(theta, self._acquisition) * self._root_averages
        vector = target.repeat_interleave(candidates.shape[1], dim=0)
        return theta, signals, vector, nonnegative_least_squares(signals, vector)
