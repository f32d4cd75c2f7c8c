"""Muon in float32.

torch's own computes its products in bfloat16, which a CPU without instructions for that type (AVX2 alone) emulates:
a step of the demo's training took ten seconds there, and takes a fraction of one in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["Muon"]

_STEPS = 5
_QUINTIC = (3.4445, -4.775, 2.0315)  # the coefficients of Jordan's Newton-Schulz iteration, as in torch.optim.Muon


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before each step (K. Jordan and others, 2024).

    params: matrices, float32 [rows, columns]. lr: the step's root mean square is 0.2 of it, as AdamW's is.
    """

    def __init__(self, params: Iterable[torch.Tensor], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002 -- the signature is torch's
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                moving = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                moving.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(moving, group["momentum"])  # Nesterov's
                rate = group["lr"] * 0.2 * max(weight.shape) ** 0.5
                weight.sub_(orthogonal(ahead), alpha=rate)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """UV' of a matrix USV', about: singular values come out between 0.7 and 1.2."""
    a, b, c = _QUINTIC
    wide: torch.Tensor = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
