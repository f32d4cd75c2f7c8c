"""GPTQ: rounding a linear layer's weight so that its outputs on the calibration text change least.

For a layer y = W x with the Hessian H = sum of x x' over the calibration tokens, the squared change of
the outputs is tr((W - Q) H (W - Q)'). Columns are rounded one after another and each column's error is
passed on to those not yet rounded (Frantar et al. 2022, arXiv:2210.17323). Two more steps lower the
same sum at the same size and in the same file format:

- order: columns with a large Hessian diagonal go first. Without act-order the groups stay blocks of
  neighbouring columns: groups are ordered by their largest diagonal entry and columns within a group by
  theirs, so `g_idx` stays 0, 0, …, 1, 1, … and readers pay nothing (Gafni et al. 2025, arXiv:2505.14638).
- refinement: sweeps of coordinate descent over the finished codes. Each group's scale is set to the
  minimum for its codes, then every code to the minimum for all others (Behdin et al. 2023,
  arXiv:2309.01885, without outliers).

All maths is float32 but the factorization, which is float64: a Hessian of few tokens is nearly singular. On a card
products are TF32, which moves the errors by less than their own spread; see docs/numbers.md.
Matrices are held transposed, [in, out], so that a column of the paper is a contiguous row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from hubbot.domain import Gptq
from hubbot.errors import Unsupported
from hubbot.formats.gptq.columns import BLOCK, round_columns
from hubbot.formats.gptq.factoring import inverse_factor
from hubbot.formats.gptq.grid import Grid, fit_grid
from hubbot.formats.gptq.groups import refine_groups, round_groups, stacked, subtract_product
from hubbot.formats.gptq.memory import COPIES
from hubbot.formats.gptq.turns import GROUPS, Turns
from hubbot.kernels.products import tf32
from hubbot.machine.room import room_on

__all__ = ["Curvature", "Solution", "prepare", "solve", "solve_together", "solve_weighed"]

SWEEPS = 2  # of refinement; docs/quality.md has what more of them bring
DAMPING_RISE = 2.0  # factor by which damping rises when the Hessian cannot be factored
_AT_ONCE = 2**27  # weights that are solved together, or less where a card has no room for COPIES of them
MAX_DAMPING = 16.0  # of the mean diagonal; a Hessian that needs more is not finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A layer in codes: weight = scale[g] * (code - zero[g]) with g = group_of[column].

    codes: uint8 [in, out]. scales: float16 [groups, out]. zeros: uint8 [groups, out], within the codes' range.
    group_of: int32 [in]. damping: share of the mean diagonal that was needed. error: squared change of the
    outputs over the squared outputs, on the calibration tokens.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    group_of: torch.Tensor
    damping: float
    error: float

    def decode(self) -> torch.Tensor:
        """float32 [out, in]."""
        group = self.group_of.long()
        steps = self.codes.to(torch.float32) - self.zeros[group].to(torch.float32)
        return (steps * self.scales[group].to(torch.float32)).t().contiguous()


@dataclass(frozen=True, slots=True, kw_only=True)
class Curvature:
    """A Hessian made ready for rounding; layers and variants with the same inputs, groups and order share it.

    order: int64 [in], the column that is rounded at each step; the columns of a group follow one another.
    group_of: int64 [in], the group of each original column.
    hessian: float32 [in, in], in that order, over its mean diagonal, damped.
    factor: float32 [in, in], upper triangular U with U'U the inverse of `hessian`.
    damping: share of the mean diagonal that was added.
    """

    order: torch.Tensor
    group_of: torch.Tensor
    hessian: torch.Tensor
    factor: torch.Tensor
    damping: float
    group_size: int  # columns; all of them for one scale per output row


def prepare(hessian: torch.Tensor, layout: Gptq, damping: float) -> Curvature:
    """Order, damp and factor a Hessian, float32 [in, in]; damping rises until the factorization succeeds.

    Inputs that were always zero need no care of their own: their damped diagonal makes them independent
    of all others, so their weights are simply rounded to the nearest code.
    Raises Unsupported where the Hessian is not finite.
    """
    columns = hessian.shape[0]
    group_size = columns if layout.group_size == -1 else layout.group_size
    mean = hessian.diagonal().mean()
    if not torch.isfinite(hessian).all():
        msg = (
            "The inputs of a layer are not finite on the calibration text, so GPTQ cannot weigh its errors. "
            "Check the model in float32, or calibrate on other text."
        )
        raise Unsupported(msg)
    seen = bool(mean > 0)
    scale = hessian.diagonal() / mean if seen else torch.ones(columns, device=hessian.device)
    order, group_of = _rounding_order(scale, group_size, act_order=layout.act_order)
    damped = hessian[order][:, order].div_(mean) if seen else torch.eye(columns, device=hessian.device)
    while True:
        damped.diagonal().copy_(scale[order] + damping)
        factor = inverse_factor(damped)
        if factor is not None:
            return Curvature(
                order=order, group_of=group_of, hessian=damped, factor=factor, damping=damping, group_size=group_size
            )
        damping *= DAMPING_RISE
        if damping > MAX_DAMPING:
            msg = f"A Hessian cannot be factored even with damping {damping:g}; calibrate on more or other text."
            raise Unsupported(msg)


def _rounding_order(diagonal: torch.Tensor, group_size: int, *, act_order: bool) -> tuple[torch.Tensor, torch.Tensor]:
    columns = diagonal.numel()
    positions = torch.arange(columns, device=diagonal.device)
    if act_order:
        order = diagonal.argsort(descending=True, stable=True)
        group_of = torch.empty_like(order)
        group_of[order] = positions // group_size
        return order, group_of
    groups = diagonal.view(-1, group_size)
    within, largest = groups.argsort(dim=1, descending=True, stable=True), groups.amax(1)
    first = positions[::group_size]
    order = (within + first[:, None])[largest.argsort(descending=True, stable=True)].flatten()
    return order, positions // group_size


def solve(weight: torch.Tensor, curvature: Curvature, layout: Gptq, *, sweeps: int = SWEEPS) -> Solution:
    """Round a weight, any float dtype [out, in], to the grid of `layout`.

    sweeps: rounds of refinement after the columns' own pass; 0 leaves plain GPTQ.
    """
    return solve_together([weight], curvature, layout, sweeps=sweeps)[0]


def solve_together(
    weights: Sequence[torch.Tensor], curvature: Curvature, layout: Gptq, *, sweeps: int = SWEEPS
) -> list[Solution]:
    """Weights with the same inputs, each as `solve` rounds it, in one go: outputs never meet, and a card likes them wide."""
    device = curvature.hessian.device
    wanted = torch.cat([weight.to(device, torch.float32).t()[curvature.order] for weight in weights], dim=1)
    with tf32():
        pieces = torch.split(wanted, max(1, _at_once(device) // wanted.shape[0]), dim=1)
        found = [_rounded(piece.contiguous(), curvature, layout, sweeps) for piece in pieces]
    return _solutions(found, [weight.shape[0] for weight in weights], curvature)


def solve_weighed(
    weights: Sequence[torch.Tensor], bands: Sequence[Turns], curvature: Curvature, layout: Gptq
) -> list[Solution]:
    """Layers with the same inputs, rounded by the loss of the whole model: the errors of a band's outputs count together.

    bands: by `turns_of` these layers. The loss of an error E is tr(G E H E'), G the band's matrix (Tseng et al. 2025,
    arXiv:2505.22988). Outputs are rounded in groups, each group for what the errors of those before it in its band have
    left, as GPTQ does with columns and H.
    """
    device, sizes = curvature.hessian.device, [len(weight) for weight in weights]
    wanted = torch.cat([weight.to(device, torch.float32).t()[curvature.order] for weight in weights], dim=1)
    found: list[tuple[torch.Tensor, Grid]] = []
    rests = [wanted[:, band.order] for band in bands]
    with tf32():
        for turn in range(GROUPS):
            moved = torch.cat([rest[:, band.groups[turn]] for band, rest in zip(bands, rests, strict=True)], dim=1)
            codes, grid = _coded(moved, curvature, layout, SWEEPS)
            found.append((codes, grid))
            errors = moved - _decoded(codes, grid, curvature)
            counts = [len(band.places(turn)) for band in bands]
            for band, rest, own in zip(bands, rests, torch.split(errors, counts, dim=1), strict=True):
                band.pass_on(turn, own, rest)
        back = torch.cat([band.places(turn) for turn in range(GROUPS) for band in bands]).argsort()
        codes = torch.cat([codes for codes, _ in found], dim=1)[:, back]
        scale = torch.cat([grid.scale for _, grid in found], dim=1)[:, back]
        zero = torch.cat([grid.zero for _, grid in found], dim=1)[:, back]
        return _solutions([_measured(wanted, codes, Grid(scale, zero), curvature)], sizes, curvature)


def _solutions(found: Sequence[_Rounded], outputs: list[int], curvature: Curvature) -> list[Solution]:
    """Layers of so many outputs each, from what their outputs end to end are rounded to."""
    of_layers = zip(
        *(torch.split(torch.cat(parts, dim=-1), outputs, dim=-1) for parts in zip(*found, strict=True)), strict=True
    )
    return [_solution(_Rounded(*own), curvature) for own in of_layers]


def _at_once(device: torch.device) -> int:
    """Weights that are solved together."""
    weights = _AT_ONCE
    while device.type == "cuda" and 4 * COPIES * weights > room_on(device) and weights > 2**20:
        weights //= 2
    return weights


class _Rounded(NamedTuple):
    """Outputs of layers in codes, in rounding order.

    codes: uint8 [in, out]. scale: float16 [groups, out]. zero: uint8 [groups, out].
    lost, whole: float64 [out], squared change of each output on the calibration tokens, and the squared output.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    lost: torch.Tensor
    whole: torch.Tensor


def _rounded(wanted: torch.Tensor, curvature: Curvature, layout: Gptq, sweeps: int) -> _Rounded:
    """wanted: float32 [in, out] in rounding order."""
    codes, grid = _coded(wanted, curvature, layout, sweeps)
    return _measured(wanted, codes, grid, curvature)


def _coded(wanted: torch.Tensor, curvature: Curvature, layout: Gptq, sweeps: int) -> tuple[torch.Tensor, Grid]:
    codes, grid = _round_columns(wanted, curvature, layout)
    return _refine(wanted, codes, grid, curvature, layout, sweeps) if sweeps else (codes, grid)


def _decoded(codes: torch.Tensor, grid: Grid, curvature: Curvature) -> torch.Tensor:
    group_of = torch.arange(codes.shape[0], device=codes.device) // curvature.group_size
    return (codes - grid.zero[group_of]) * grid.scale[group_of]


def _measured(wanted: torch.Tensor, codes: torch.Tensor, grid: Grid, curvature: Curvature) -> _Rounded:
    error = wanted - _decoded(codes, grid, curvature)
    return _Rounded(
        codes=codes.to(torch.uint8),
        scale=grid.scale.to(torch.float16),
        zero=grid.zero.to(torch.uint8),
        lost=_energy(error, curvature),
        whole=_energy(wanted, curvature),
    )


def _round_columns(wanted: torch.Tensor, curvature: Curvature, layout: Gptq) -> tuple[torch.Tensor, Grid]:
    """GPTQ proper. wanted: [in, out] in rounding order -> codes, float32 [in, out], and the groups' grids in that order."""
    rest = wanted.clone()  # what is still to be rounded, with the errors made so far passed on to it
    codes = torch.empty_like(wanted)
    importance = curvature.factor.diagonal().pow(-2)  # what one unit of error in a column costs
    grids: list[Grid] = []
    for start in range(0, wanted.shape[0], BLOCK):
        block = slice(start, min(start + BLOCK, wanted.shape[0]))
        U = curvature.factor[start : block.stop, start:]
        if BLOCK % curvature.group_size == 0:
            codes[block], errors, found = round_groups(
                rest[block], U[:, : block.stop - start], importance[block], curvature.group_size, layout
            )
            grids += [Grid(scale, zero) for scale, zero in zip(found.scale, found.zero, strict=True)]
        else:
            codes[block], errors = _round_within_groups(rest, block, U, importance, grids, curvature.group_size, layout)
        subtract_product(rest[block.stop :], U[:, block.stop - start :].t(), errors)
    return codes, stacked(grids)


def _round_within_groups(
    rest: torch.Tensor,
    block: slice,
    U: torch.Tensor,
    importance: torch.Tensor,
    grids: list[Grid],
    group_size: int,
    layout: Gptq,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A block whose groups reach beyond it, or do not fill it: `grids` grows by those that begin in it."""
    start, stop = block.start, block.stop
    codes, errors = torch.empty_like(rest[block]), torch.zeros_like(rest[block])
    for first in range(start, stop, min(BLOCK, group_size)):
        if first % group_size == 0:
            group = slice(first, first + group_size)
            grids.append(fit_grid(_with_errors(rest, group, stop, U, errors, start), importance[group], layout))
        last = min(first + group_size, stop)
        here = slice(first - start, last - start)
        codes[here], errors[here] = round_columns(
            rest[first:last], U[here, here], grids[-1].scale, grids[-1].zero, layout.bits
        )
        rest[last:stop] -= U[here, last - start : stop - start].t() @ errors[here]
    return codes, errors


def _with_errors(
    rest: torch.Tensor, group: slice, stop: int, U: torch.Tensor, errors: torch.Tensor, start: int
) -> torch.Tensor:
    """The group's weights, with the current block's errors passed on also to columns beyond the block."""
    inside, beyond = rest[group.start : min(group.stop, stop)], slice(stop, max(group.stop, stop))
    late = rest[beyond] - U[:, beyond.start - start : beyond.stop - start].t() @ errors
    return torch.cat([inside, late])


def _refine(
    wanted: torch.Tensor, codes: torch.Tensor, grid: Grid, curvature: Curvature, layout: Gptq, sweeps: int
) -> tuple[torch.Tensor, Grid]:
    """Coordinate descent on scales and codes; every step lowers the damped error or leaves it."""
    size = curvature.group_size
    zeros = grid.zero.repeat_interleave(size, 0)
    steps = codes - zeros
    pull = curvature.hessian @ (wanted - steps * grid.scale.repeat_interleave(size, 0))  # half the negative gradient
    grid = Grid(grid.scale.clone(), grid.zero)
    for _ in range(sweeps):
        refine_groups(steps, curvature.hessian, pull, grid, size, layout.bits)
    return steps + zeros, grid


def _solution(rounded: _Rounded, curvature: Curvature) -> Solution:
    back = curvature.order.argsort()
    groups = curvature.group_of[curvature.order[:: curvature.group_size]].argsort()
    return Solution(
        codes=rounded.codes[back],
        scales=rounded.scale[groups],
        zeros=rounded.zero[groups],
        group_of=curvature.group_of.to(torch.int32),
        damping=curvature.damping,
        error=float(rounded.lost.sum().clamp_min(0) / rounded.whole.sum().clamp_min(1e-30)),
    )


def _energy(matrix: torch.Tensor, curvature: Curvature) -> torch.Tensor:
    """Squared outputs, float64 [out], of a matrix [in, out] on the calibration tokens: damping is taken off again."""
    damped = _summed((curvature.hessian @ matrix).mul_(matrix))
    return damped - curvature.damping * _summed(matrix.square())


def _summed(matrix: torch.Tensor) -> torch.Tensor:
    """Sums of columns, float64 [out]: by slabs, because a card would write out all of the matrix in float64."""
    return torch.stack([slab.sum(0, dtype=torch.float64) for slab in torch.split(matrix, BLOCK)]).sum(0)
