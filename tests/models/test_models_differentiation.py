"""Automatic derivatives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from qmri_bidsapp.models.differentiation import derivatives


def test_derivatives_of_a_known_function() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    results, slopes = derivatives(lambda v: torch.stack([v[0] * v[1], v[0] ** 2, v[1].exp()]), values)
    x, y = values.unbind(-1)
    torch.testing.assert_close(results, torch.stack([x * y, x**2, y.exp()], dim=-1))
    zero = torch.zeros_like(x)
    rows = [torch.stack(row, dim=-1) for row in ((y, x), (2 * x, zero), (zero, y.exp()))]
    torch.testing.assert_close(slopes, torch.stack(rows, dim=1))


def test_threads_can_differentiate_at_the_same_time() -> None:
    """As estimators do, chunk by chunk."""
    values = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))

    def work(_: int) -> torch.Tensor:
        return derivatives(lambda v: torch.exp(-v[:2]) * v[2], values)[1]

    expected = work(0)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(200)):
            torch.testing.assert_close(found, expected)
