"""Recurrent inference machine: a network that climbs the likelihood and knows what maps look like."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from qmri_bidsapp.estimators.cholesky import factorise, inverse_factor, solve
from qmri_bidsapp.estimators.series import Coordinates, Series
from qmri_bidsapp.models.base import SignalModel

#: Features of all layers, and steps (Sabidussi et al. 2021, section 4.4.4).
N_FEATURES = 36
N_STEPS = 6
#: Brings the logarithms of standard deviations near one.
SPREAD_SCALE = 2.0
#: Longest step that the network is shown, in normalised parameters.
MAX_STEP = 3.0
#: Values of the first parameters after the amplitude in the grid of the first guess, by how many there are, and how far
#: from the centre they reach in normalised form.
GRID_SIZES = {1: (32,), 2: (12, 64)}
GRID_REACH = 2.7
#: Side of the window, voxels, in which the first guess takes a parameter between amplitude and time to be the same.
WINDOW = 41


class GatedUnit(nn.Module):
    """Gated recurrent unit (Cho et al. 2014) of every voxel on its own: (n, n_features, height, width) in and out."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.from_input = nn.Conv2d(n_features, 3 * n_features, 1)
        self.from_memory = nn.Conv2d(n_features, 3 * n_features, 1)

    def forward(self, features: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Return the new memory, which is the output as well."""
        reset, update, candidate = self.from_input(features).chunk(3, dim=1)
        reset_memory, update_memory, candidate_memory = self.from_memory(memory).chunk(3, dim=1)
        candidate = torch.tanh(candidate + torch.sigmoid(reset + reset_memory) * candidate_memory)
        return torch.lerp(candidate, memory, torch.sigmoid(update + update_memory))


class RecurrentInferenceMachine(nn.Module):
    """Iterates estimates of all parameters of a slice (Putzky and Welling 2017; Sabidussi et al. 2021, section 3).

    In every step the network sees the current parameters and the evidence of each voxel's measurements: gradient and
    curvature of the likelihood, in a form that can be read whatever the protocol; see `evidence`. The number of
    measurements does not matter, for both are sums over them.

    Parameters
    ----------
    model : SignalModel
        Whose closed-form Jacobian gives the score.
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

    def forward(self, batch: list[Series]) -> list[torch.Tensor]:
        """Return the normalised parameters after every step, (n_slices, n_parameters, height, width) each.

        All series of the batch have slices of one size; those of their parameters follow each other.
        """
        coordinates = Coordinates(self.model, str(batch[0].signals.device))
        inside = torch.cat([series.inside for series in batch]).unsqueeze(1)
        normal = torch.cat([first_guess(self.model, coordinates, series) for series in batch])
        normal = normal.movedim(-1, 1) * inside
        memory = normal.new_zeros(len(normal), self.n_features, *normal.shape[2:])
        memories = [memory, memory]
        steps = []
        for _ in range(self.n_steps):
            parts = torch.split(normal.detach().movedim(1, -1), [len(series.signals) for series in batch])
            measured = torch.cat(
                [evidence(self.model, coordinates, series, part) for series, part in zip(batch, parts, strict=True)]
            )
            seen = torch.cat([normal, measured.movedim(-1, 1)], dim=1) * inside
            memories[0] = self.first_unit(torch.tanh(self.first(seen)), memories[0])
            memories[1] = self.second_unit(self.middle(memories[0]), memories[1])
            normal = (normal + self.last(memories[1])) * inside
            steps.append(normal)
        return steps


@torch.no_grad()
def evidence(model: SignalModel, coordinates: Coordinates, series: Series, normal: torch.Tensor) -> torch.Tensor:
    r"""Return what the measurements say of every voxel on its own, (n_slices, height, width, 2 n_parameters).

    These are the gradient of the log-posterior in the metric of its curvature, which is the step to the maximum, and
    the logarithm of the posterior's standard deviations,

    .. math:: C \left[J^T (S - f) / \sigma^2 - \theta\right], \quad \ln \operatorname{diag}(C)^{1/2}, \quad
        C = (J^T J / \sigma^2 + 1)^{-1}

    with the Jacobian by normalised parameters, Gaussian noise, and the standard normal distribution as the prior of
    normalised parameters. Of magnitudes with Rician noise the gradient has S I1(z) / I0(z), z = S f / sigma^2, in place
    of S (Sijbers et al. 1998, Magn Reson Imaging 16:87), so that the noise floor does not count as signal. From the
    bare gradient, whose size depends on the protocol, a network for all protocols learns less.

    Parameters
    ----------
    model : SignalModel
    coordinates : Coordinates
    series : Series
    normal : Tensor
        (n_slices, height, width, n_parameters), normalised parameters.
    """
    theta = coordinates.physical(normal)
    jacobian = model.jacobian(theta, series.acquisition)
    # The signal is proportional to the amplitude, the first parameter, so that its derivative holds the signal.
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
    precision = [
        [(columns[i] * columns[j]).sum(-1) * size[i] * size[j] + (i == j) for j in range(i + 1)]
        for i in range(len(columns))
    ]
    factor = factorise(precision)
    pull = [g - value for g, value in zip(score, normal.flatten(0, -2).unbind(-1), strict=True)]
    step = solve(factor, pull).clamp(-MAX_STEP, MAX_STEP)
    inverse = inverse_factor(factor)
    variance = [torch.stack([row[i].square() for row in inverse[i:]]).sum(0) for i in range(len(columns))]
    spread = torch.stack(variance, dim=-1).log() / (2 * SPREAD_SCALE)
    return torch.cat([step, spread], dim=-1).view(*normal.shape[:-1], -1)


@torch.no_grad()
def first_guess(model: SignalModel, coordinates: Coordinates, series: Series) -> torch.Tensor:
    """Return a posterior mean on a coarse grid, (n_slices, height, width, n_parameters), normalised.

    The prior is the standard normal distribution of the normalised parameters; the amplitude is integrated out. Where
    there is a parameter between amplitude and relaxation time, it is told by the voxels of a window together, as if it
    were the same in all of them: by the sum of their log-likelihoods, each at its own best amplitude and time. Over the
    likelihoods themselves, integrated with a prior that is wrong for any one tissue, the errors would add up.
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
        # The mean of a magnitude f with noise is f + sigma^2 / 2 f, as far as the noise is small.
        signals = (signals.square() - 1 / precision).clamp(min=0).sqrt()
    product = signals @ (entries / size.unsqueeze(-1)).T
    guess = []
    if len(axes) > 1:
        product, size = product.unflatten(-1, sizes), size.unflatten(0, sizes)
        likelihood = peak(product)[1].clamp(min=0).square() * precision / 2
        together = window_sum(likelihood * series.inside.unsqueeze(-1)) - axes[0].square() / 2
        place = peak(together)[0].clamp(0, len(axes[0]) - 1)
        guess.append((place / (len(axes[0]) - 1) * 2 - 1) * GRID_REACH)
        product, size = _between(product, place), _between(size.expand(*place.shape, *sizes), place)
    centre, width = coordinates.centre[0], coordinates.width[0]
    sharpness = size.square() * precision + width.pow(-2)
    amplitude = (product * size * precision + centre * width.pow(-2)) / sharpness
    weight = ((amplitude.square() * sharpness - sharpness.log() - axes[-1].square()) / 2).softmax(-1)
    mean = ((weight * amplitude).sum(-1) - centre) / width
    return torch.stack([mean, *guess, weight @ axes[-1]], dim=-1)


def window_sum(values: torch.Tensor) -> torch.Tensor:
    """Return (n_slices, height, width, n) sums over the square of `WINDOW` voxels around each voxel."""
    half = WINDOW // 2
    images = values.movedim(-1, 1)
    rows = nn.functional.avg_pool2d(images, (WINDOW, 1), stride=1, padding=(half, 0))
    total = WINDOW**2 * nn.functional.avg_pool2d(rows, (1, WINDOW), stride=1, padding=(0, half))
    return total.movedim(1, -1)


def peak(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the last axis of values (..., n) has its maximum, as an index with a fraction, and its height.

    They are those of the parabola through the largest value and its neighbours.
    """
    index = values.argmax(-1, keepdim=True).clamp(1, values.shape[-1] - 2)
    before, at, after = (values.gather(-1, index + i).squeeze(-1) for i in (-1, 0, 1))
    slope, curvature = (after - before) / 2, before - 2 * at + after
    shift = torch.where(curvature < 0, -slope / curvature, 0.0).clamp(-1, 1)
    return index.squeeze(-1) + shift, at + slope * shift + curvature * shift.square() / 2


def _between(values: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Return (..., n) values between two rows of (..., m, n), at an index with a fraction, (...)."""
    low = place.floor().clamp(max=values.shape[-2] - 2)
    index = low.long()[..., None, None].expand(*place.shape, 1, values.shape[-1])
    first, second = (values.gather(-2, index + i).squeeze(-2) for i in (0, 1))
    return torch.lerp(first, second, (place - low).unsqueeze(-1))
