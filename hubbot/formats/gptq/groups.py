"""What the solver does group by group within a block of columns, in plain torch: the definition of `hubbot.kernels.gptq_groups`.

Matrices are float32 and transposed, [in, out]. A grid of several groups has scale and zero [groups, out].
"""

from __future__ import annotations

import torch

from hubbot.domain import Gptq
from hubbot.formats.gptq.columns import BLOCK, descend, round_columns
from hubbot.formats.gptq.grid import Grid, candidate_shares, fit_grid, storable
from hubbot.kernels import kernels_on

__all__ = ["refine_groups", "round_groups", "stacked", "subtract_product"]


def round_groups(
    weight: torch.Tensor, factor: torch.Tensor, importance: torch.Tensor, size: int, layout: Gptq
) -> tuple[torch.Tensor, torch.Tensor, Grid]:
    """Fit a grid to each group of `size` columns and round these, one group after another, passing errors on.

    weight: [columns, out], with the errors of earlier columns passed on; changes in place. factor: [columns, columns],
    their square of the upper triangular factor of the inverse Hessian. importance: [columns].
    Returns codes and errors, [columns, out], and the grids.
    """
    if kernels := kernels_on(weight, "gptq_groups"):
        codes, errors, scale, zero = kernels.round_groups(
            weight, factor, importance, size, layout.bits, candidate_shares(), symmetric=layout.symmetric
        )
        return codes, errors, Grid(scale, zero)
    codes, errors = torch.empty_like(weight), torch.zeros_like(weight)
    grids = []
    for first in range(0, weight.shape[0], size):
        group = slice(first, first + size)
        grids.append(fit_grid(weight[group], importance[group], layout))
        codes[group], errors[group] = round_columns(
            weight[group], factor[group, group], grids[-1].scale, grids[-1].zero, layout.bits
        )
        subtract_product(weight[group.stop :], factor[group, group.stop :].t(), errors[group])
    return codes, errors, stacked(grids)


def refine_groups(
    steps: torch.Tensor, hessian: torch.Tensor, pull: torch.Tensor, grid: Grid, size: int, bits: int
) -> None:
    """One sweep of coordinate descent over groups of `size` columns: each group's scale, then its codes.

    steps: [columns, out], codes less zero, and grid.scale change in place, so that the error falls or stays.
    hessian: [columns, columns]. pull: [columns, out], half the negative gradient; is kept true to the steps.
    """
    if BLOCK % size == 0 and (kernels := kernels_on(steps, "gptq_groups")):
        for start in range(0, steps.shape[0], BLOCK):
            block = slice(start, min(start + BLOCK, steps.shape[0]))
            groups = slice(block.start // size, block.stop // size)
            moved = kernels.refine_groups(
                steps[block],
                hessian[block, block],
                pull[block].clone(),
                grid.scale[groups],
                grid.zero[groups],
                size,
                bits,
            )
            subtract_product(pull, hessian[:, block], moved)
        return
    for index in range(len(grid.scale)):
        group = slice(index * size, (index + 1) * size)
        own = Grid(grid.scale[index], grid.zero[index])
        before = steps[group] * own.scale
        own, group_pull = _refit_scale(steps[group], own, hessian[group, group], pull[group])
        _descend(steps[group], own, hessian[group, group], group_pull, bits)
        subtract_product(pull, hessian[:, group], steps[group] * own.scale - before)
        grid.scale[index] = own.scale


def stacked(grids: list[Grid]) -> Grid:
    return Grid(torch.stack([grid.scale for grid in grids]), torch.stack([grid.zero for grid in grids]))


def subtract_product(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """target -= left @ right."""
    if target.is_cuda:
        target.addmm_(left, right, alpha=-1)  # in one pass over the target
        return
    target -= left @ right


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
        subtract_product(pull, hessian[:, block], (steps[block] - before) * grid.scale)
