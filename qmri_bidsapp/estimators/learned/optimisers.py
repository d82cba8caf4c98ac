"""Optimisers that torch lacks: FTRL-Proximal, proximal AdaGrad, dual coordinate ascent for ridge regression."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

#: Default block size, examples, of dual coordinate ascent.
BLOCK = 64


class _Penalised(torch.optim.Optimizer):
    """Base of optimisers with penalties l1 |w| + l2 w^2 / 2, which are minimised exactly in each step."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, *, l1: float = 0.0, l2: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "l1": l1, "l2": l2})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one step with the present gradients; `closure` is not used."""
        for group in self.param_groups:
            for weight in group["params"]:
                # A rate of zero, at the end of a schedule, changes nothing.
                if weight.grad is not None and group["lr"] > 0:
                    self._move(weight, weight.grad, self.state[weight], group)

    def _move(self, weight: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError


class FTRL(_Penalised):
    """Follow the regularised leader, proximal, with a learning rate per coordinate.

    Algorithm 1 of McMahan et al. 2013 (Proc. KDD), with one difference: penalties count in every step, as in McMahan
    2011 (Proc. AISTATS, table 1), rather than once in all. They do not fade with the number of steps, and the minimum
    is that of the mean loss plus l1 |w| + l2 w^2 / 2. The learning rate may change between steps, and weights need not
    start at zero.

    Parameters
    ----------
    params : iterable of Parameter
    lr : float
        Alpha in the reference: the rate of a coordinate is lr / (beta + root of its sum of squared gradients).
    l1, l2 : float
        Weights of the penalties.
    beta : float
        Limits the size of the first steps.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, *, l1: float = 0.0, l2: float = 0.0, beta: float = 1.0
    ) -> None:
        super().__init__(params, lr, l1=l1, l2=l2)
        self.beta = beta

    def _move(self, weight: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            # Sum of squared gradients, inverse rate (sum of the algorithm's sigmas) and z, which include the start.
            state["squares"] = torch.zeros_like(weight)
            state["inverse_rate"] = torch.full_like(weight, self.beta / group["lr"])
            state["z"] = -state["inverse_rate"] * weight
            state["step"] = torch.zeros(())
        state["step"] += 1
        state["squares"].addcmul_(gradient, gradient)
        inverse_rate = (self.beta + state["squares"].sqrt()) / group["lr"]
        state["z"] += gradient - (inverse_rate - state["inverse_rate"]) * weight
        state["inverse_rate"] = inverse_rate
        n = float(state["step"])
        weight.copy_(-_shrink(state["z"], n * group["l1"]) / (inverse_rate + n * group["l2"]))


class ProximalAdagrad(_Penalised):
    """AdaGrad with penalties as a proximal step.

    Duchi & Singer 2009, J Mach Learn Res 10:2899; Duchi et al. 2011, J Mach Learn Res 12:2121, equation 4.

    Parameters
    ----------
    params : iterable of Parameter
    lr : float
        The rate of a coordinate is lr / (delta + root of its sum of squared gradients).
    l1, l2 : float
        Weights of the penalties.
    delta : float
        Added to the root.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, *, l1: float = 0.0, l2: float = 0.0, delta: float = 1e-3
    ) -> None:
        super().__init__(params, lr, l1=l1, l2=l2)
        self.delta = delta

    def _move(self, weight: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["squares"] = torch.zeros_like(weight)
        state["squares"].addcmul_(gradient, gradient)
        rate = group["lr"] / (self.delta + state["squares"].sqrt())
        weight.copy_(_shrink(weight - rate * gradient, rate * group["l1"]) / (1 + rate * group["l2"]))


def _shrink(values: torch.Tensor, by: torch.Tensor | float) -> torch.Tensor:
    """Return values moved towards zero by an amount, and zero where they would cross it (soft threshold)."""
    return values.sign() * (values.abs() - by).clamp(min=0)


def dual_coordinate_ascent(
    design: torch.Tensor,
    response: torch.Tensor,
    ridge: float,
    generator: torch.Generator,
    *,
    epochs: int,
    block: int = BLOCK,
) -> torch.Tensor:
    """Return the coefficients of ridge regression by stochastic dual coordinate ascent (SDCA).

    They minimise the mean of (y - x w)^2 / 2 plus ridge / 2 |w|^2. Each example has a dual variable a, and w is
    X' a / (ridge n). The dual is maximised in closed form over one block of variables after the other (Shalev-Shwartz
    & Zhang 2013, J Mach Learn Res 14:567, section 6.2, where a block is one example).

    Parameters
    ----------
    design : Tensor
        (n, n_coefficients).
    response : Tensor
        (n, n_targets).
    ridge : float
        Positive.
    generator : torch.Generator
        Draws the order of the examples in every epoch.
    epochs : int
        Passes over the examples.
    block : int
        Examples in a block.

    Returns
    -------
    Tensor
        (n_coefficients, n_targets).
    """
    n = len(design)
    dual, weight = torch.zeros_like(response), design.new_zeros(design.shape[1], response.shape[1])
    identity = torch.eye(block, dtype=design.dtype, device=design.device)
    for _ in range(epochs):
        order = torch.randperm(n, generator=generator, device=design.device)
        for index in torch.split(order, block):
            rows = design[index]
            kernel = rows @ rows.T / (ridge * n) + identity[: len(index), : len(index)]
            change = torch.linalg.solve(kernel, response[index] - dual[index] - rows @ weight)
            dual[index] += change
            weight += rows.T @ change / (ridge * n)
    return weight
