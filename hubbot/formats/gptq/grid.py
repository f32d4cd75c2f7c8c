"""Scale and zero point of a group: the grid that a row's weights of that group are rounded to.

A checkpoint holds scales in float16, and a reader that computes in bfloat16 rounds them once more.
So scales are rounded to a value that both types hold before anything is rounded with them: every
reader then multiplies with the same scales, and the codes were chosen for just these.

With the zero point in the middle, codes reach one step further below zero than above it. A negative
scale turns that around, so that the longer side serves the larger weights; readers multiply as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hubbot.domain import Gptq

__all__ = ["Grid", "fit_grid", "nearest_code", "storable"]

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


def nearest_code(weight: torch.Tensor, grid: Grid, bits: int) -> torch.Tensor:
    """float32 codes of weights [..., out], half to even as everywhere in torch."""
    return torch.clamp(torch.round(weight / grid.scale) + grid.zero, 0, 2**bits - 1)


def fit_grid(weight: torch.Tensor, importance: torch.Tensor, layout: Gptq) -> Grid:
    """The grid with the least importance-weighted squared rounding error, of those tried.

    weight: float32 [columns, out]. importance: float32 [columns].
    """
    best_error = torch.full_like(weight[0], torch.inf)
    best = Grid(torch.ones_like(weight[0]), torch.full_like(weight[0], 2 ** (layout.bits - 1)))
    for grid in _candidates(weight, layout):
        rounded = grid.scale * (nearest_code(weight, grid, layout.bits) - grid.zero)
        error = importance @ (rounded - weight).square_()
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = Grid(torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero))
    return best


def _candidates(weight: torch.Tensor, layout: Gptq) -> Iterator[Grid]:
    highest_code = 2**layout.bits - 1
    low, high = weight.amin(0).clamp(max=0), weight.amax(0).clamp(min=0)
    if layout.symmetric:
        reach = torch.maximum(high, -low)
        zero = torch.full_like(reach, 2 ** (layout.bits - 1))
        for share in _SHRINK:
            scale = _usable(share * reach * 2 / highest_code)
            yield Grid(scale, zero)
            yield Grid(-scale, zero)
        return
    for share in _SHRINK:
        scale = _usable(share * (high - low) / highest_code)
        middle = torch.round(-low * share / scale)
        for shift in _ZERO_SHIFTS:
            yield Grid(scale, (middle + shift).clamp(0, highest_code))


def _usable(scale: torch.Tensor) -> torch.Tensor:
    """A float16 scale that can be divided by: 1 where all weights are zero or vanish in float16."""
    rounded = storable(scale.clamp(max=_LARGEST))
    return torch.where(rounded > 0, rounded, torch.ones_like(rounded))
