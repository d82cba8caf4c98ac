"""Exact posterior of models with few non-linear parameters, by summation over points."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.estimators.parallel import for_each_chunk
from qmri_bidsapp.estimators.posterior.amplitude import Amplitude
from qmri_bidsapp.estimators.voxels import Solution, VoxelData
from qmri_bidsapp.estimators.voxelwise import VoxelwiseEstimator
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.solvers.cubature import NEAR, Box, gap_of, korobov_lattice, next_box, points_in, whole_cube
from qmri_bidsapp.solvers.weighted_quantiles import summarise

#: Points over the whole space, and in the box around the posterior, by number of non-linear parameters.
N_COARSE = {1: 128, 2: 1024, 3: 2048}
N_POINTS = {1: 64, 2: 256, 3: 1024}
#: Largest mass at the faces of the box, and largest difference between the two halves of the lattice.
EDGE_MASS = 2e-3
IMBALANCE = 0.1
#: Boxes that are tried, from which on with more points, and how many more.
N_LEVELS = 10
HARD_LEVEL = 5
HARD_FACTOR = 4
#: Least noise, relative to the voxel's largest signal: the resolution of single precision and of digitised images.
NOISE_FLOOR = 1e-4
#: Values of the amplitude per point.
N_STRATA = 8
#: Values that are evaluated at a time: few enough for the processor's cache.
BATCH_VALUES = 2**17


class _Voxels(NamedTuple):
    """Measurements of the voxels of a batch."""

    target: torch.Tensor  #: (n, n_measurements), relative to the voxel's size, weighted by averages
    variance: torch.Tensor  #: (n, 1) of the noise of one measurement, relative; NaN if it is not known
    size: torch.Tensor  #: (n, 1) largest absolute signal
    covariates: torch.Tensor  #: (n, n_covariates)

    def select(self, index: torch.Tensor) -> _Voxels:
        """Return some of the voxels."""
        return _Voxels(*(values[index] for values in self))


class _Posterior(NamedTuple):
    """The posterior of some voxels at points."""

    position: torch.Tensor  #: (n, n_points, n_axes) in the unit cube
    log_weight: torch.Tensor  #: (n, n_points)
    amplitude: Amplitude
    at_edge: torch.Tensor  #: (n, n_points) bool, see `Points`

    def select(self, index: torch.Tensor) -> _Posterior:
        """Return those of some of the voxels."""
        mean, scale, freedom = self.amplitude
        amplitude = Amplitude(mean[index], scale[index], freedom)
        return _Posterior(self.position[index], self.log_weight[index], amplitude, self.at_edge[index])


class _Sums(NamedTuple):
    """Results: columns are the parameters, then the derived ones."""

    estimate: torch.Tensor  #: (n, n_columns)
    std: torch.Tensor  #: (n, n_columns)
    lower: torch.Tensor  #: (n, n_columns)
    upper: torch.Tensor  #: (n, n_columns)
    log_evidence: torch.Tensor  #: (n,)
    status: torch.Tensor  #: (n,)


class GridPosterior(VoxelwiseEstimator):
    """Posterior mean, standard deviation, central 95 % interval and evidence, by summation over points.

    The prior is uniform within the bounds of every parameter; bounds of the amplitude are relative to the voxel's
    largest signal. Noise is Gaussian of known standard deviation or, where that is not given, its logarithm has a
    uniform prior (Jeffreys). Amplitude and noise are integrated out in closed form (`Amplitude`), so that sums run over
    the other parameters only: first over all of their space, then over the points of a lattice in a box around the
    posterior, which is narrowed until the points resolve it.

    Mass outside the box, less than half a per cent, is neglected: where a thin tail reaches far (unknown noise and few
    measurements), the standard deviation is that of the bulk. Limits of the interval are
    precise to about a tenth of a standard deviation. Posteriors that remain unresolved are marked NOT_CONVERGED. With
    no more measurements than parameters, the posterior exists only where the noise is known; elsewhere the voxel has
    FAILED.

    The log evidence is the natural logarithm of the density of the voxel's measurements (of shells, their averages)
    in the unit of the signals. It can be compared between models of the same measurements. Where the noise is not
    known, it has an arbitrary constant, the same for all models: the density of the logarithm of the noise is one.
    """

    name: ClassVar[str] = "grid"
    title: ClassVar[str] = "Posterior mean by summation over a lattice"
    std_kind: ClassVar[str] = "Posterior standard deviation (uniform prior)"
    reference: ClassVar[str] = "Bretthorst 1988, Lecture Notes in Statistics 48; Sloan and Joe 1994, Lattice Methods"
    has_posterior: ClassVar[bool] = True
    #: Batches depend on whether the noise of a voxel is known.
    chunk_size: ClassVar[int | None] = None

    #: Models with more non-linear parameters would need too many points.
    MAX_NONLINEAR: ClassVar[int] = 3
    methods: ClassVar[str] = (
        "With the estimator grid, estimates are posterior means for a uniform prior within bounds and Gaussian "
        "noise, by summation over a lattice [@lattice], and standard deviations are those of the posterior."
    )
    bibliography: ClassVar[str] = """
    @article{lattice,
      author = {Sloan IH, Joe S},
      year = {1994},
      title = {Lattice methods for multiple integration},
      journal = {Oxford University Press}
    }
    """

    @classmethod
    def supports(cls, model: SignalModel) -> bool:
        """Return whether there are few parameters beside the amplitude, none of them a direction."""
        return not isinstance(model, Composition) and len(model.parameters) - 1 <= cls.MAX_NONLINEAR

    def _prepare(self, acquisition: Acquisition, seed: int) -> None:
        """Compute the signals of the coarse points."""
        nonlinear = self.model.parameters[1:]
        n_axes = len(nonlinear)
        self._low, self._high = (self._tensor([p.bounds[i] for p in nonlinear]) for i in (0, 1))
        self._is_log = torch.tensor([p.is_logarithmic for p in nonlinear], device=self.device)
        self._root_averages = self._tensor(acquisition.n_averages).sqrt()
        # The amplitude gets a coordinate of its own, so that the points stand for the joint posterior.
        self._lattices = [self._tensor(korobov_lattice(k * N_POINTS[n_axes], n_axes + 1)) for k in (1, HARD_FACTOR)]
        self._coarse = self._tensor(korobov_lattice(N_COARSE[n_axes], n_axes))
        if not self.model.covariates:
            shape = self._shape(self._coarse.unsqueeze(0), self._coarse[:1, :0])[0].double()
            energy = shape.square().sum(-1)
            self._coarse_atoms = (shape / energy.sqrt().unsqueeze(-1)).T.contiguous()
            self._coarse_energy = energy.float()
            self._coarse_prior = self._log_prior(self._coarse)
        self._batch = max(1, BATCH_VALUES // (acquisition.n_measurements * N_POINTS[n_axes]))

    def _solve(self, voxels: VoxelData) -> Solution:
        """Return the moments of the posterior; see `VoxelwiseEstimator`."""
        values = voxels.signals
        noise = np.full(len(values), np.nan, dtype=np.float32) if voxels.noise_std is None else voxels.noise_std
        inputs = [torch.as_tensor(array, device=self.device) for array in (values, noise, voxels.covariates)]
        sums = self._empty(len(values))
        is_known = inputs[1].isfinite()
        n_measurements, n_parameters = self.acquisition_.n_measurements, len(self.model.parameters)
        self._solve_all(sums, inputs, is_known, freedom=math.inf)
        # As many parameters as measurements fit them exactly: the integral over the noise diverges there.
        if n_measurements > n_parameters:
            self._solve_all(sums, inputs, ~is_known, freedom=n_measurements - 1.0)
        estimate, std, lower, upper, evidence, status = (array.cpu().numpy() for array in sums)
        return Solution(estimate, std, status, lower=lower, upper=upper, log_evidence=evidence)

    def _empty(self, n_voxels: int) -> _Sums:
        """Return results of that many voxels, to be filled."""
        n_columns = len(self.model.parameters) + len(self.model.derived)
        blank = torch.full((n_voxels,), torch.nan, device=self.device)
        estimate, std, lower, upper = (blank[:, None].repeat(1, n_columns) for _ in range(4))
        return _Sums(estimate, std, lower, upper, blank, torch.full_like(blank, float(Status.FAILED)))

    def _solve_all(self, sums: _Sums, inputs: list[torch.Tensor], chosen: torch.Tensor, freedom: float) -> None:
        """Fill in the results of the chosen voxels, whose inputs are signals, noise and covariates."""
        index = torch.nonzero(chosen).squeeze(1)

        def solve(part: slice) -> None:
            rows = index[part]
            values, noise, covariates = (array[rows] for array in inputs)
            size = values.abs().amax(-1, keepdim=True)
            variance = (noise.unsqueeze(-1) / size).square().clamp(min=NOISE_FLOOR**2)
            voxels = _Voxels(values / size * self._root_averages, variance, size, covariates)
            self._narrow(sums, rows, voxels, freedom)

        for_each_chunk(solve, len(index), self._batch, self.device)

    def _narrow(self, sums: _Sums, rows: torch.Tensor, voxels: _Voxels, freedom: float) -> None:
        """Fill in the results of a batch of voxels, which are to go into `rows`."""
        box = self._first_box(voxels, freedom)
        for level in range(N_LEVELS):
            lattice = self._lattices[level >= HARD_LEVEL]
            posterior = self._posterior(voxels, box, lattice[:, :-1], freedom)
            settled = (gap_of(posterior.log_weight) <= NEAR) & _is_balanced(posterior)
            done = settled | posterior.log_weight.isneginf().all(-1) | (level == N_LEVELS - 1)
            self._store(sums, rows[done], voxels.select(done), posterior.select(done), lattice[:, -1], settled[done])
            if done.all():
                return
            rest = ~done
            rows, voxels = rows[rest], voxels.select(rest)
            box = next_box(posterior.position[rest], posterior.log_weight[rest], freedom)

    def _first_box(self, voxels: _Voxels, freedom: float) -> Box:
        """Return a box around the posterior; the whole space for models whose signals depend on covariates."""
        n = len(voxels.target)
        if self.model.covariates:
            return whole_cube(n, self._low)
        # One product with shapes that all voxels share; a small difference of large sums needs double precision.
        target = voxels.target.double()
        explained = target @ self._coarse_atoms
        total = target.square().sum(-1, keepdim=True)
        residual = torch.addcmul(total, explained, explained, value=-1).float().clamp(min=0)
        mean = explained.float() * self._coarse_energy.rsqrt()
        log_weight, _ = self._weigh(voxels, mean, self._coarse_energy, residual, freedom)
        return next_box(self._coarse, log_weight + self._coarse_prior, freedom)

    def _posterior(self, voxels: _Voxels, box: Box, unit: torch.Tensor, freedom: float) -> _Posterior:
        """Evaluate the posterior at the points of the lattice in the boxes."""
        position, log_volume, at_edge = points_in(box, unit)
        shape = self._shape(position, voxels.covariates)
        target = voxels.target.unsqueeze(1)
        energy = shape.square().sum(-1).clamp(min=torch.finfo(shape.dtype).tiny)
        mean = (shape * target).sum(-1) / energy
        residual = (target - mean.unsqueeze(-1) * shape).square().sum(-1)
        log_weight, amplitude = self._weigh(voxels, mean, energy, residual, freedom)
        return _Posterior(position, log_weight + log_volume + self._log_prior(position), amplitude, at_edge)

    def _shape(self, position: torch.Tensor, covariates: torch.Tensor) -> torch.Tensor:
        """Return signals of amplitude one, (n, n_points, n_measurements), weighted by averages."""
        nonlinear = self._nonlinear(position)
        parameters = torch.cat([torch.ones_like(nonlinear[..., :1]), nonlinear], dim=-1)
        known = covariates.unsqueeze(1).expand(*position.shape[:-1], -1)
        return self.model.signal(self.model.with_covariates(parameters, known), self.acquisition_) * self._root_averages

    def _nonlinear(self, position: torch.Tensor) -> torch.Tensor:
        """Return the parameters of a position in the unit cube; those of a wide range are logarithmic in it."""
        linear = self._low + position * (self._high - self._low)
        if not self._is_log.any():
            return linear
        return torch.where(self._is_log, self._low * (self._high / self._low).pow(position), linear)

    def _weigh(
        self, voxels: _Voxels, mean: torch.Tensor, energy: torch.Tensor, residual: torch.Tensor, freedom: float
    ) -> tuple[torch.Tensor, Amplitude]:
        """Return the logarithm of the likelihood, amplitude and noise integrated out.

        Parameters
        ----------
        voxels : _Voxels
        mean, energy, residual : Tensor
            (n, n_points) amplitude that fits best, sum of squares of the signal of amplitude one, and of the
            residuals.
        freedom : float
            Of the noise; infinite if it is known.

        Returns
        -------
        log_likelihood : Tensor
            (n, n_points), for relative signals.
        amplitude : Amplitude
        """
        dimension = len(self._root_averages) - 1
        if math.isinf(freedom):
            variance = voxels.variance
            log_likelihood = -dimension / 2 * (2 * math.pi * variance).log() - residual / (2 * variance)
        else:
            variance = residual / dimension + NOISE_FLOOR**2
            constant = math.lgamma(dimension / 2) - math.log(2)
            log_likelihood = constant - dimension / 2 * (math.pi * dimension * variance).log()
        amplitude = Amplitude(mean, (variance / energy).sqrt(), freedom)
        low, high = self.model.parameters[0].bounds
        mass = amplitude.log_mass(low, high) - math.log(high - low)
        return log_likelihood + mass - energy.log() / 2, amplitude

    def _log_prior(self, position: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the density, in the unit cube, that is uniform in the parameters."""
        if not self._is_log.any():
            return torch.zeros_like(position[..., 0])
        slope = self._nonlinear(position) * (self._high / self._low).log() / (self._high - self._low)
        return torch.where(self._is_log, slope, 1.0).log().sum(-1)

    def _store(
        self,
        sums: _Sums,
        rows: torch.Tensor,
        voxels: _Voxels,
        posterior: _Posterior,
        share: torch.Tensor,
        settled: torch.Tensor,
    ) -> None:
        """Fill in the results of voxels, which are to go into `rows`.

        `share` (n_points,) is the coordinate of the amplitude.
        """
        low, high = self.model.parameters[0].bounds
        weight = posterior.log_weight.softmax(-1)
        amplitude = posterior.amplitude.quantile(share, low, high) * voxels.size
        parameters = torch.cat([amplitude.unsqueeze(-1), self._nonlinear(posterior.position)], dim=-1)
        known = voxels.covariates.unsqueeze(1).expand(*amplitude.shape, -1)
        derived = self.model.derive(self.model.with_covariates(parameters, known))
        columns = summarise(torch.cat([parameters, derived], dim=-1).mT.contiguous(), weight)
        # The spread of the amplitude at a point is as large as that between points: it needs more than one value each.
        strata = [posterior.amplitude.quantile((share + k) / N_STRATA, low, high) for k in range(N_STRATA)]
        amplitude = torch.cat(strata, dim=-1) * voxels.size
        first = summarise(amplitude.unsqueeze(1), weight.repeat(1, N_STRATA) / N_STRATA)
        for column, own in zip(columns, first, strict=True):
            column[:, :1] = own
        log_sum = posterior.log_weight.logsumexp(-1) - math.log(posterior.log_weight.shape[-1])
        in_unit = self._root_averages.log().sum() - len(self._root_averages) * voxels.size.squeeze(-1).log()
        status = torch.where(settled, float(Status.OK), float(Status.NOT_CONVERGED))
        for result, part in zip(sums, (*columns, log_sum + in_unit, status), strict=True):
            result[rows] = part

    def _tensor(self, values: npt.ArrayLike) -> torch.Tensor:
        """Return values in the precision and on the device of the computation."""
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)


def _is_balanced(posterior: _Posterior) -> torch.Tensor:
    """Return whether (n,) the box holds the posterior and the lattice resolves it.

    Little mass must be at the faces of the box, and both halves of the lattice must have about the same mass.
    """
    weight = posterior.log_weight.softmax(-1)
    at_edge = (weight * posterior.at_edge).sum(-1)
    imbalance = (weight[:, ::2].sum(-1) - weight[:, 1::2].sum(-1)).abs()
    return (at_edge < EDGE_MASS) & (imbalance < IMBALANCE)
