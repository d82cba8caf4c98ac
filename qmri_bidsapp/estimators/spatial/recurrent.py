"""Recurrent inference machine: a network that iterates on the likelihood and has learned a prior of maps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import nn

from qmri_bidsapp.estimators.spatial.error_head import SliceNetwork
from qmri_bidsapp.estimators.spatial.slices import Coordinates, Slices
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.solvers.cholesky import factorise, inverse_factor, solve

#: Features of all layers, and steps (Sabidussi et al. 2021, section 4.4.4).
N_FEATURES = 36
N_STEPS = 6
#: Divisor that brings the logarithms of standard deviations near one.
SPREAD_SCALE = 2.0
#: Largest step among the network's inputs, in normalised parameters.
MAX_STEP = 3.0
#: Grid of the first guess: values of each parameter after the amplitude, by the number of these parameters, and
#: largest distance from the centre in normalised form.
GRID_SIZES = {1: (32,), 2: (12, 64)}
GRID_REACH = 2.7
#: Newton steps from the best grid point, and damping added to the information of each voxel in them.
N_REFINEMENTS = 2
DAMPING = 1e-3
#: Side of the window, voxels, within which the first guess assumes one value of the parameter between amplitude and
#: time.
WINDOW = 41


class GatedUnit(nn.Module):
    """Gated recurrent unit (Cho et al. 2014), applied to each voxel: (n, n_features, height, width) in and out."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.from_input = nn.Conv2d(n_features, 3 * n_features, 1)
        self.from_memory = nn.Conv2d(n_features, 3 * n_features, 1)

    def forward(self, features: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Return the new memory, which is also the output."""
        reset, update, candidate = self.from_input(features).chunk(3, dim=1)
        reset_memory, update_memory, candidate_memory = self.from_memory(memory).chunk(3, dim=1)
        candidate = torch.tanh(candidate + torch.sigmoid(reset + reset_memory) * candidate_memory)
        return torch.lerp(candidate, memory, torch.sigmoid(update + update_memory))


class RecurrentInferenceMachine(SliceNetwork):
    """Iterates estimates of all parameters of a slice (Putzky and Welling 2017; Sabidussi et al. 2021, section 3).

    In every step the network sees the current parameters and, for each voxel, gradient and curvature of the likelihood
    in a form that does not depend on the protocol; see `likelihood_features`. The number of measurements is free, since
    both are sums over measurements.

    Parameters
    ----------
    model : SignalModel
        With a closed-form Jacobian, from which the score is computed.
    n_features : int
        Of all layers.
    n_steps : int
    """

    def __init__(self, model: SignalModel, n_features: int = N_FEATURES, n_steps: int = N_STEPS) -> None:
        super().__init__()
        self.model = model
        self.n_steps = n_steps
        self.n_features = n_features
        n_parameters = len(model.parameters)
        self.n_known = 2 * n_features + 3 * n_parameters + 1
        self.first = nn.Conv2d(3 * n_parameters, n_features, 3, padding=1)
        self.first_unit = GatedUnit(n_features)
        self.middle = nn.Sequential(
            nn.Conv2d(n_features, n_features, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(n_features, n_features, 3, padding=1),
            nn.Tanh(),
        )
        self.second_unit = GatedUnit(n_features)
        self.last = nn.Conv2d(n_features, n_parameters, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast(torch.Tensor, self.last.bias))

    def forward(self, batch: list[Slices]) -> list[torch.Tensor]:
        """Return the normalised parameters after every step, (n_slices, n_parameters, height, width) each.

        All series of the batch have slices of one size; their parameters are concatenated.
        """
        return [step.normal for step in self._steps(batch)]

    def known(self, batch: list[Slices]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last normalised parameters, and features that predict their errors.

        The latter, (n_slices, n_known, height, width), are the memories, the parameters, the likelihood features of the
        last step, and the logarithm of the noise.
        """
        last = deque(self._steps(batch), maxlen=1).pop()
        return last.normal, torch.cat([*last.memories, last.normal, last.measured, log_noise(batch)], dim=1)

    def _steps(self, batch: list[Slices]) -> Iterator[_Step]:
        """Iterate, and yield the state after every step."""
        coordinates = Coordinates(self.model, str(batch[0].signals.device))
        inside = torch.cat([series.inside for series in batch]).unsqueeze(1)
        normal = torch.cat([first_guess(self.model, coordinates, series) for series in batch])
        normal = normal.movedim(-1, 1) * inside
        memory = normal.new_zeros(len(normal), self.n_features, *normal.shape[2:])
        memories = [memory, memory]
        for _ in range(self.n_steps):
            measured = likelihood_images(self.model, coordinates, batch, normal)
            seen = torch.cat([normal, measured], dim=1) * inside
            memories = [self.first_unit(torch.tanh(self.first(seen)), memories[0]), memories[1]]
            memories[1] = self.second_unit(self.middle(memories[0]), memories[1])
            normal = (normal + self.last(memories[1])) * inside
            yield _Step(normal, memories, measured)


class _Step(NamedTuple):
    """State after a step: images, (n_slices, ..., height, width)."""

    normal: torch.Tensor
    memories: list[torch.Tensor]
    measured: torch.Tensor


def likelihood_images(
    model: SignalModel, coordinates: Coordinates, batch: list[Slices], normal: torch.Tensor
) -> torch.Tensor:
    """Return `likelihood_features` of all series of a batch as images, (n_slices, 2 n_parameters, height, width)."""
    parts = torch.split(normal.detach().movedim(1, -1), [len(series.signals) for series in batch])
    measured = [
        likelihood_features(model, coordinates, series, part) for series, part in zip(batch, parts, strict=True)
    ]
    return torch.cat(measured).movedim(-1, 1)


def log_noise(batch: list[Slices]) -> torch.Tensor:
    """Return the logarithm of the noise of every voxel, (n_slices, 1, height, width)."""
    return torch.cat([series.noise_std.expand(series.inside.shape) for series in batch]).log().unsqueeze(1)


@torch.no_grad()
def likelihood_features(
    model: SignalModel, coordinates: Coordinates, series: Slices, normal: torch.Tensor
) -> torch.Tensor:
    r"""Return features of each voxel's likelihood, (n_slices, height, width, 2 n_parameters).

    These are the Gauss-Newton step to the maximum of the voxel's posterior, and the logarithm of the posterior's
    standard deviations,

    .. math:: C \left[J^T (S - f) / \sigma^2 - \theta\right], \quad \ln \operatorname{diag}(C)^{1/2}, \quad
        C = (J^T J / \sigma^2 + 1)^{-1}

    with the Jacobian J by normalised parameters, Gaussian noise, and a standard normal prior on normalised parameters.
    For magnitudes with Rician noise the gradient has S I1(z) / I0(z), z = S f / sigma^2, in place of S (Sijbers et al.
    1998, Magn Reson Imaging 16:87), so that the noise floor is not taken for signal. The bare gradient depends on the
    protocol in size; a network for all protocols learns less from it.

    Parameters
    ----------
    model : SignalModel
    coordinates : Coordinates
    series : Slices
    normal : Tensor
        (n_slices, height, width, n_parameters), normalised parameters.
    """
    score, information = linearise(model, coordinates, series, normal)
    precision = [[part + (i == j) for j, part in enumerate(row)] for i, row in enumerate(information)]
    factor = factorise(precision)
    pull = [g - value for g, value in zip(score, normal.flatten(0, -2).unbind(-1), strict=True)]
    step = solve(factor, pull).clamp(-MAX_STEP, MAX_STEP)
    inverse = inverse_factor(factor)
    variance = [torch.stack([row[i].square() for row in inverse[i:]]).sum(0) for i in range(len(score))]
    spread = torch.stack(variance, dim=-1).log() / (2 * SPREAD_SCALE)
    return torch.cat([step, spread], dim=-1).view(*normal.shape[:-1], -1)


def linearise(
    model: SignalModel, coordinates: Coordinates, series: Slices, normal: torch.Tensor
) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """Return the gradient of the log-likelihood and the lower triangle of its information, by normalised parameters.

    Entries are (n_voxels,), with voxels in the order of `normal`; see `likelihood_features` for the noise.
    """
    theta = coordinates.physical(normal)
    jacobian = model.jacobian(theta, series.acquisition)
    # The signal is proportional to the amplitude, the first parameter: the derivative by it is the unit signal.
    signal = jacobian[..., 0] * theta[..., :1]
    measured = series.signals
    if series.is_rician:
        product = measured * signal / series.noise_std.unsqueeze(-1).square()
        measured = measured * torch.special.i1e(product) / torch.special.i0e(product)
    residual = measured - signal
    scale = coordinates.slope(theta) / series.noise_std.unsqueeze(-1)
    columns = [jacobian[..., i].flatten(0, -2) for i in range(theta.shape[-1])]
    size = [scale[..., i].flatten() for i in range(theta.shape[-1])]
    misfit = (residual / series.noise_std.unsqueeze(-1)).flatten(0, -2)
    score = [(column * misfit).sum(-1) * unit for column, unit in zip(columns, size, strict=True)]
    information = [
        [(columns[i] * columns[j]).sum(-1) * size[i] * size[j] for j in range(i + 1)] for i in range(len(columns))
    ]
    return score, information


@torch.no_grad()
def first_guess(model: SignalModel, coordinates: Coordinates, series: Slices) -> torch.Tensor:
    """Return voxelwise estimates, (n_slices, height, width, n_parameters), normalised.

    They are posterior means on a coarse grid, with a standard normal prior on the normalised parameters and the
    amplitude integrated out. For models with a parameter between amplitude and relaxation time, see `shared_guess`.
    """
    sizes = GRID_SIZES[len(model.parameters) - 1]
    axes = [torch.linspace(-GRID_REACH, GRID_REACH, n, device=series.signals.device) for n in sizes]
    points = torch.cartesian_prod(*axes).view(-1, len(axes))
    theta = coordinates.physical(torch.cat([torch.zeros_like(points[:, :1]), points], dim=1))
    theta[:, 0] = 1
    entries = model.signal(theta, series.acquisition)
    size = entries.norm(dim=-1)
    precision = series.noise_std.unsqueeze(-1).pow(-2)
    signals = series.signals
    if series.is_rician:
        # The mean of a magnitude f is f + sigma^2 / 2 f where the noise is small.
        signals = (signals.square() - 1 / precision).clamp(min=0).sqrt()
    product = signals @ (entries / size.unsqueeze(-1)).T
    centre, width = coordinates.centre[0], coordinates.width[0]
    if len(axes) > 1:
        start, counted = shared_guess(product.unflatten(-1, sizes), size.unflatten(0, sizes), axes, series)
        start[..., 0] = (start[..., 0] - centre) / width
        return refine(model, coordinates, series, start, counted)
    sharpness = size.square() * precision + width.pow(-2)
    amplitude = (product * size * precision + centre * width.pow(-2)) / sharpness
    weight = ((amplitude.square() * sharpness - sharpness.log() - axes[-1].square()) / 2).softmax(-1)
    mean = ((weight * amplitude).sum(-1) - centre) / width
    return torch.stack([mean, weight @ axes[-1]], dim=-1)


def shared_guess(
    product: torch.Tensor, size: torch.Tensor, axes: list[torch.Tensor], series: Slices
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return parameters from a grid, the middle one estimated from all voxels of a window together.

    The middle parameter is assumed to be the same throughout the window. Each voxel has its own best amplitude and
    time; the profile log-likelihoods of the voxels are added. Integrating over times instead would add the errors of a
    prior that fits no single tissue. Profile estimates are biased where the noise is large.

    Parameters
    ----------
    product : Tensor
        (n_slices, height, width, n, m) products of the signals with entries of unit norm.
    size : Tensor
        (n, m) norms of the entries.
    axes : list of Tensor
        (n,) and (m,) normalised values of the middle parameter and of the time.
    series : Slices

    Returns
    -------
    guess : Tensor
        (n_slices, height, width, 3), the amplitude in its unit, the others normalised.
    counted : Tensor
        (n_slices, height, width, 1) bool, which voxels contribute: not those whose best time is an end of the grid.
    """
    place, height = peak(product)
    is_between = (place > 0) & (place < len(axes[1]) - 1)
    # A voxel must count for every value of the middle parameter, or values that exclude voxels would win.
    counted = series.inside.unsqueeze(-1) & is_between.all(-1, keepdim=True)
    likelihood = height.clamp(min=0).square() * series.noise_std.unsqueeze(-1).pow(-2) / 2
    together = window_sum(likelihood * counted) - axes[0].square() / 2
    row = peak(together)[0]
    nearest = row.round().long().unsqueeze(-1)
    column = place.gather(-1, nearest)
    largest = size.flatten()[nearest * len(axes[1]) + column.round().long()]
    guess = [height.gather(-1, nearest) / largest]
    for position, axis in zip((row.unsqueeze(-1), column), axes, strict=True):
        guess.append((position / (len(axis) - 1) * 2 - 1) * GRID_REACH)
    return torch.cat(guess, dim=-1), counted


def refine(
    model: SignalModel, coordinates: Coordinates, series: Slices, normal: torch.Tensor, counted: torch.Tensor
) -> torch.Tensor:
    """Refine `shared_guess` between the points of its grid by Gauss-Newton steps to the maximum of the posterior.

    Each step eliminates amplitude and time of every voxel, solves for the middle parameter of every window, and
    substitutes back.
    """
    for _ in range(N_REFINEMENTS):
        score, information = linearise(model, coordinates, series, normal)
        (a,), (ab, b), (at, bt, t) = information
        own, shared = _solve(a, at, t, score[0], score[2]), _solve(a, at, t, ab, bt)
        left = score[1] - ab * own[0] - bt * own[1]
        known = (b - ab * shared[0] - bt * shared[1]).clamp(min=0)
        parts = torch.stack([left, known], dim=-1).view(*counted.shape[:-1], 2)
        pull, weight = window_sum(parts * counted).unbind(-1)
        step = ((pull - normal[..., 1]) / (1 + weight)).clamp(-1, 1)
        others = [
            (x.view(step.shape) - y.view(step.shape) * step).clamp(-1, 1) for x, y in zip(own, shared, strict=True)
        ]
        normal = (normal + torch.stack([others[0], step, others[1]], dim=-1)).clamp(-MAX_STEP, MAX_STEP)
    score, ((a,), _, (at, _, t)) = linearise(model, coordinates, series, normal)
    amplitude, _, time = normal.flatten(0, -2).unbind(-1)
    steps = _solve(a + 1, at, t + 1, score[0] - amplitude, score[2] - time)
    last = torch.stack([steps[0], torch.zeros_like(time), steps[1]], dim=-1).clamp(-1, 1)
    return normal + last.view(normal.shape)


def _solve(
    a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the solution of [[a, b], [b, d]] with right-hand side [x, y], with `DAMPING` on the diagonal."""
    a, d = a + DAMPING, d + DAMPING
    determinant = a * d - b * b
    return (d * x - b * y) / determinant, (a * y - b * x) / determinant


def window_sum(values: torch.Tensor) -> torch.Tensor:
    """Return (n_slices, height, width, n) sums over the square of `WINDOW` voxels around each voxel."""
    half = WINDOW // 2
    images = values.movedim(-1, 1)
    rows = nn.functional.avg_pool2d(images, (WINDOW, 1), stride=1, padding=(half, 0))
    total = WINDOW**2 * nn.functional.avg_pool2d(rows, (1, WINDOW), stride=1, padding=(0, half))
    return total.movedim(1, -1)


def peak(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the position of the maximum along the last axis of (..., n) values, as a fractional index, and its height.

    Both come from the parabola through the largest value and its neighbours; at an end, from the largest value.
    """
    largest, index = values.max(-1, keepdim=True)
    centre = index.clamp(1, values.shape[-1] - 2)
    before, at, after = (values.gather(-1, centre + i).squeeze(-1) for i in (-1, 0, 1))
    slope, curvature = (after - before) / 2, before - 2 * at + after
    is_inner = (index == centre).squeeze(-1) & (curvature < 0)
    shift = torch.where(is_inner, -slope / curvature, 0.0)
    height = torch.where(is_inner, at + slope * shift / 2, largest.squeeze(-1))
    return index.squeeze(-1) + shift, height
