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

All maths is float32 but the factorization, which is float64: a Hessian of few tokens is nearly singular.
Matrices are held transposed, [in, out], so that a column of the paper is a contiguous row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hubbot.domain import Gptq
from hubbot.errors import Unsupported
from hubbot.formats.gptq.columns import descend, round_columns
from hubbot.formats.gptq.grid import Grid, fit_grid, storable

__all__ = ["Curvature", "Solution", "prepare", "solve"]

SWEEPS = 2  # of refinement; docs/quality.md has what more of them bring
BLOCK = 128  # columns rounded before the rest of the matrix is updated
DAMPING_RISE = 2.0  # factor by which damping rises when the Hessian cannot be factored
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
    scaled = hessian / mean if mean > 0 else torch.eye(columns, device=hessian.device)
    order, group_of = _rounding_order(scaled.diagonal(), group_size, act_order=layout.act_order)
    ordered = scaled[order][:, order]
    while True:
        damped = ordered.clone()
        damped.diagonal().add_(damping)
        factor = _inverse_factor(damped)
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


def _inverse_factor(matrix: torch.Tensor) -> torch.Tensor | None:
    """Upper triangular U with U'U = inverse of `matrix`, or None where it is not positive definite.

    A Cholesky factor of the matrix read backwards is, read backwards, the upper R with R R' = matrix;
    then U = inverse of R, and the inverse itself is never formed.
    """
    lower, failed = torch.linalg.cholesky_ex(matrix.double().flip(0, 1))
    if failed.item():
        return None
    upper = lower.flip(0, 1)
    identity = torch.eye(matrix.shape[0], dtype=upper.dtype, device=upper.device)
    factor: torch.Tensor = torch.linalg.solve_triangular(upper, identity, upper=True).float()
    return factor


def solve(weight: torch.Tensor, curvature: Curvature, layout: Gptq, *, sweeps: int = SWEEPS) -> Solution:
    """Round a weight, any float dtype [out, in], to the grid of `layout`.

    sweeps: rounds of refinement after the columns' own pass; 0 leaves plain GPTQ.
    """
    wanted = weight.to(curvature.hessian.device, torch.float32).t()[curvature.order].contiguous()
    codes, grids = _round_columns(wanted, curvature, layout)
    if sweeps:
        codes, grids = _refine(wanted, codes, grids, curvature, layout, sweeps)
    return _solution(wanted, codes, grids, curvature)


def _round_columns(wanted: torch.Tensor, curvature: Curvature, layout: Gptq) -> tuple[torch.Tensor, list[Grid]]:
    """GPTQ proper. wanted: [in, out] in rounding order -> codes, float32 [in, out], and a grid per group in that order."""
    rest = wanted.clone()  # what is still to be rounded, with the errors made so far passed on to it
    codes = torch.empty_like(wanted)
    importance = curvature.factor.diagonal().pow(-2)  # what one unit of error in a column costs
    grids: list[Grid] = []
    for start in range(0, wanted.shape[0], BLOCK):
        stop = min(start + BLOCK, wanted.shape[0])
        U = curvature.factor[start:stop, start:]
        errors = torch.zeros_like(rest[start:stop])
        for first in range(start, stop, min(BLOCK, curvature.group_size)):
            if first % curvature.group_size == 0:
                group = slice(first, first + curvature.group_size)
                grids.append(fit_grid(_with_errors(rest, group, stop, U, errors, start), importance[group], layout))
            last = min(first + curvature.group_size, stop)
            here, part = slice(first - start, last - start), slice(first, last)
            codes[part], errors[here] = round_columns(
                rest[part], U[here, here], grids[-1].scale, grids[-1].zero, layout.bits
            )
            rest[last:stop] -= U[here, last - start : stop - start].t() @ errors[here]
        rest[stop:] -= U[:, stop - start :].t() @ errors
    return codes, grids


def _with_errors(
    rest: torch.Tensor, group: slice, stop: int, U: torch.Tensor, errors: torch.Tensor, start: int
) -> torch.Tensor:
    """The group's weights, with the current block's errors passed on also to columns beyond the block."""
    inside, beyond = rest[group.start : min(group.stop, stop)], slice(stop, max(group.stop, stop))
    late = rest[beyond] - U[:, beyond.start - start : beyond.stop - start].t() @ errors
    return torch.cat([inside, late])


def _refine(
    wanted: torch.Tensor, codes: torch.Tensor, grids: list[Grid], curvature: Curvature, layout: Gptq, sweeps: int
) -> tuple[torch.Tensor, list[Grid]]:
    """Coordinate descent on scales and codes; every step lowers the damped error or leaves it."""
    hessian, size = curvature.hessian, curvature.group_size
    steps = torch.cat([codes[i * size : (i + 1) * size] - grid.zero for i, grid in enumerate(grids)])
    decoded = torch.cat([steps[i * size : (i + 1) * size] * grid.scale for i, grid in enumerate(grids)])
    pull = hessian @ (wanted - decoded)  # half the negative gradient
    grids = list(grids)
    for _ in range(sweeps):
        for index, grid in enumerate(grids):
            group = slice(index * size, (index + 1) * size)
            before = steps[group] * grid.scale
            grid, group_pull = _refit_scale(steps[group], grid, hessian[group, group], pull[group])
            _descend(steps[group], grid, hessian[group, group], group_pull, layout.bits)
            pull -= hessian[:, group] @ (steps[group] * grid.scale - before)
            grids[index] = grid
    zeros = torch.cat([grid.zero.expand(size, -1) for grid in grids])
    return steps + zeros, grids


def _refit_scale(
    steps: torch.Tensor, grid: Grid, hessian: torch.Tensor, pull: torch.Tensor
) -> tuple[Grid, torch.Tensor]:
    """The scale with the least error for these steps (codes less zero), and the pull that is left."""
    slope = hessian @ steps
    curvature = (steps * slope).sum(0)
    best = storable(grid.scale + (steps * pull).sum(0) / curvature)
    usable = (curvature > 0) & (best * grid.scale > 0) & torch.isfinite(best)
    scale = torch.where(usable, best, grid.scale)
    return Grid(scale, grid.zero), pull - slope * (scale - grid.scale)


def _descend(steps: torch.Tensor, grid: Grid, hessian: torch.Tensor, pull: torch.Tensor, bits: int) -> None:
    """Set every code of a group, one after another, to the best one for all others; `steps` changes in place."""
    for start in range(0, steps.shape[0], BLOCK):
        block = slice(start, min(start + BLOCK, steps.shape[0]))
        before = steps[block].clone()
        descend(steps[block], hessian[block, block], pull[block], grid.scale, grid.zero, bits)
        pull -= hessian[:, block] @ ((steps[block] - before) * grid.scale)


def _solution(wanted: torch.Tensor, codes: torch.Tensor, grids: list[Grid], curvature: Curvature) -> Solution:
    scales, zeros = torch.stack([grid.scale for grid in grids]), torch.stack([grid.zero for grid in grids])
    per_column = torch.arange(wanted.shape[0], device=wanted.device) // curvature.group_size
    lost = wanted - (codes - zeros[per_column]) * scales[per_column]
    error = _energy(lost, curvature) / _energy(wanted, curvature).clamp_min(1e-30)
    back = curvature.order.argsort()
    groups = curvature.group_of[curvature.order[:: curvature.group_size]].argsort()
    return Solution(
        codes=codes[back].to(torch.uint8),
        scales=scales[groups].to(torch.float16),
        zeros=zeros[groups].to(torch.uint8),
        group_of=curvature.group_of.to(torch.int32),
        damping=curvature.damping,
        error=float(error),
    )


def _energy(matrix: torch.Tensor, curvature: Curvature) -> torch.Tensor:
    """Squared outputs of a matrix [in, out] on the calibration tokens: damping is taken off again."""
    damped = (matrix * (curvature.hessian @ matrix)).sum(dtype=torch.float64)
    return (damped - curvature.damping * matrix.square().sum(dtype=torch.float64)).clamp_min(0)
