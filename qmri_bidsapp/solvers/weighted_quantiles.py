"""Mean, spread and quantiles of weighted values."""

from __future__ import annotations

import torch

#: Probabilities of the interval's limits, and bins in which they are looked up. Neither limit can be further
#: from the mean than this many standard deviations (Cantelli's inequality).
LIMITS = (0.025, 0.975)
N_BINS = 128
REACH = 6.25


def summarise(values: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return mean, standard deviation, and the limits of the central interval, (n, n_columns) each.

    Parameters
    ----------
    values : Tensor
        (n, n_columns, n_points).
    weight : Tensor
        (n, n_points), of sum one.
    """
    weight = weight.unsqueeze(1)
    mean = (values * weight).sum(-1, keepdim=True)
    offset = values - mean
    std = (offset.square() * weight).sum(-1, keepdim=True).sqrt()
    start = torch.maximum(offset.amin(-1, keepdim=True), -REACH * std)
    width = (torch.minimum(offset.amax(-1, keepdim=True), REACH * std) - start) / N_BINS
    bins = ((offset - start) / width).nan_to_num().clamp(0, N_BINS - 1).long()
    histogram = torch.zeros_like(values[..., :1]).repeat(1, 1, N_BINS)
    histogram.scatter_add_(-1, bins, weight.expand_as(values))
    cumulative = histogram.cumsum(-1)
    limits = []
    for probability in LIMITS:
        index = (cumulative < probability).sum(-1, keepdim=True).clamp(max=N_BINS - 1)
        within = histogram.gather(-1, index)
        share = 1 - (cumulative.gather(-1, index) - probability) / within
        limits.append(mean + start + (index + share) * width)
    return tuple(part.squeeze(-1) for part in (mean, std, *limits))
