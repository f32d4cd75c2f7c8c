"""Scale and zero point of a group: the grid that a row's weights of that group are rounded to.

A checkpoint holds scales in float16, and a reader that computes in bfloat16 rounds them once more.
So scales are rounded to a value that both types hold before anything is rounded with them: every
reader then multiplies with the same scales, and the codes were chosen for just these.

With the zero point in the middle, codes reach one step further below zero than above it. A negative
scale turns that around, so that the longer side serves the larger weights; readers multiply as ever.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hubbot.domain import Gptq
from hubbot.formats.gptq.columns import best_candidate

__all__ = ["Grid", "candidate_shares", "fit_grid", "storable"]

_SHRINK = tuple(
    1.15 - 0.75 * step / 49 for step in range(50)
)  # tried scales, as shares of the one that spans the range
_LARGEST = 65280.0  # that float16 and bfloat16 both hold
_ZERO_SHIFTS = (-2, -1, 0, 1, 2)  # tried zero points, around the one that the smallest weight asks for


@dataclass(frozen=True, slots=True)
class Grid:
    """Of one group: weight = scale * (code - zero), codes 0 .. 2**bits - 1; float32 [out], exact in float16 and uint8."""

    scale: torch.Tensor
    zero: torch.Tensor


def storable(scale: torch.Tensor) -> torch.Tensor:
    """float32, rounded to a value that both float16 and bfloat16 hold."""
    return scale.to(torch.float16).to(torch.bfloat16).to(torch.float32)


def fit_grid(weight: torch.Tensor, importance: torch.Tensor, layout: Gptq) -> Grid:
    """The grid with the least importance-weighted squared rounding error, of those tried.

    weight: float32 [columns, out]. importance: float32 [columns].
    """
    scales, zeros = _candidates(weight, layout)
    best = best_candidate(weight, importance, scales, zeros, layout.bits)[None]
    return Grid(scales.gather(0, best)[0], zeros.gather(0, best)[0])


def candidate_shares() -> torch.Tensor:
    """float32 [tried], what a kernel makes the candidates of."""
    return torch.tensor(_SHRINK)


def _candidates(weight: torch.Tensor, layout: Gptq) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points to try, float32 [candidates, out] each."""
    highest_code = 2**layout.bits - 1
    low, high = weight.amin(0).clamp(max=0), weight.amax(0).clamp(min=0)
    shares = torch.tensor(_SHRINK, device=weight.device)[:, None]
    if layout.symmetric:
        scales = _usable(shares * torch.maximum(high, -low) * 2 / highest_code)
        both = torch.stack([scales, -scales], dim=1).flatten(0, 1)
        return both, torch.full_like(both, 2 ** (layout.bits - 1))
    scales = _usable(shares * (high - low) / highest_code)
    middle = torch.round(-low * shares / scales)
    shifts = torch.tensor(_ZERO_SHIFTS, device=weight.device)[:, None]
    zeros = (middle[:, None] + shifts).clamp(0, highest_code)
    return scales[:, None].expand_as(zeros).flatten(0, 1), zeros.flatten(0, 1)


def _usable(scale: torch.Tensor) -> torch.Tensor:
    """A float16 scale that can be divided by: 1 where all weights are zero or vanish in float16."""
    rounded = storable(scale.clamp(max=_LARGEST))
    return torch.where(rounded > 0, rounded, torch.ones_like(rounded))
