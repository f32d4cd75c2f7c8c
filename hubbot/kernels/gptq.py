"""The column-by-column loops of the GPTQ solver, on a GPU.

In torch each column costs several launches of a few microseconds, whatever its width; here one launch takes a
whole block of columns. A program holds its output features for all columns of the block, because output features
never meet. The functions of the same names in `hubbot.formats.gptq.columns` define what is computed.

All tensors are float32, contiguous along output features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["best_candidate", "descend", "round_columns"]

_ROWS = 128  # columns of the layer that a program holds at once
_FEATURES = 8  # output features of one program: with one warp, nothing has to wait for another
_ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding and subtracting it rounds half to even, below 2**22
_FAR = tl.constexpr(65536.0)  # further from any code than a quotient need be told


@triton.jit
def _half_even(value):
    return (tl.minimum(tl.maximum(value, -_FAR), _FAR) + _ROUNDER) - _ROUNDER


@triton.jit
def _nearest(weight, scale, zero, top):
    return tl.minimum(tl.maximum(_half_even(tl.div_rn(weight, scale)) + zero, 0.0), top)


@triton.jit
def _cost(value, cost, scale, zero, top):
    code = _nearest(value, scale[None, :], zero[None, :], top)
    lost = scale[None, :] * (code - zero[None, :]) - value
    return tl.sum(cost[:, None] * lost * lost, axis=0)


@triton.jit
def _best_kernel(
    weight, importance, scales, zeros, best, columns, features, candidates, top,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    live = feature < features
    row = tl.arange(0, ROWS)
    inside = (row < columns)[:, None] & live[None, :]
    held = tl.load(weight + row[:, None] * features + feature[None, :], mask=inside, other=0.0)
    held_cost = tl.load(importance + row, mask=row < columns, other=0.0)
    least = tl.full((FEATURES,), float("inf"), tl.float32)
    chosen = tl.zeros((FEATURES,), tl.int32)
    for candidate in range(candidates):
        scale = tl.load(scales + candidate * features + feature, mask=live, other=1.0)
        zero = tl.load(zeros + candidate * features + feature, mask=live, other=0.0)
        error = tl.zeros((FEATURES,), tl.float32)
        if WHOLE:  # the columns fit a tile, which stays in registers while all grids are tried
            error += _cost(held, held_cost, scale, zero, top)
        else:
            for first in range(0, columns, ROWS):
                row = first + tl.arange(0, ROWS)
                inside = (row < columns)[:, None] & live[None, :]
                value = tl.load(weight + row[:, None] * features + feature[None, :], mask=inside, other=0.0)
                cost = tl.load(importance + row, mask=row < columns, other=0.0)
                error += _cost(value, cost, scale, zero, top)
        better = error < least
        least = tl.where(better, error, least)
        chosen = tl.where(better, candidate, chosen)
    tl.store(best + feature, chosen, mask=live)


@triton.jit
def _round_kernel(
    weight, factor, scale_of, zero_of, codes, errors, columns, features, top,
    ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    live = feature < features
    row = tl.arange(0, ROWS)
    inside = (row < columns)[:, None] & live[None, :]
    left = tl.load(weight + row[:, None] * features + feature[None, :], mask=inside, other=0.0)
    scale = tl.load(scale_of + feature, mask=live, other=1.0)
    zero = tl.load(zero_of + feature, mask=live, other=0.0)
    for column in range(columns):
        value = tl.sum(tl.where((row == column)[:, None], left, 0.0), axis=0)
        code = _nearest(value, scale, zero, top)
        later = tl.load(factor + column * columns + row, mask=(row >= column) & (row < columns), other=0.0)
        error = tl.div_rn(value - scale * (code - zero), tl.load(factor + column * columns + column) + 0.0 * zero)
        left -= later[:, None] * error[None, :]
        tl.store(codes + column * features + feature, code, mask=live)
        tl.store(errors + column * features + feature, error, mask=live)


@triton.jit
def _descend_kernel(
    steps, hessian, pull, scale_of, zero_of, columns, features, top,
    ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    live = feature < features
    row = tl.arange(0, ROWS)
    inside = (row < columns)[:, None] & live[None, :]
    left = tl.load(pull + row[:, None] * features + feature[None, :], mask=inside, other=0.0)
    scale = tl.load(scale_of + feature, mask=live, other=1.0)
    zero = tl.load(zero_of + feature, mask=live, other=0.0)
    for column in range(columns):
        current = tl.load(steps + column * features + feature, mask=live, other=0.0)
        drawn = tl.sum(tl.where((row == column)[:, None], left, 0.0), axis=0)
        steepness = tl.load(hessian + column * columns + column) + 0.0 * zero
        best = _nearest(current * scale + tl.div_rn(drawn, steepness), scale, zero, top) - zero
        others = tl.load(hessian + column * columns + row, mask=row < columns, other=0.0)
        left -= others[:, None] * ((best - current) * scale)[None, :]
        tl.store(steps + column * features + feature, best, mask=live)


def best_candidate(
    weight: torch.Tensor, importance: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int
) -> torch.Tensor:
    """See the twin. weight [columns, out], importance [columns], scales and zeros [candidates, out] -> int64 [out]."""
    columns, features = weight.shape
    best = torch.empty(features, dtype=torch.int32, device=weight.device)
    _best_kernel[_grid(features)](
        weight.contiguous(), importance.contiguous(), scales.contiguous(), zeros.contiguous(), best,
        columns, features, scales.shape[0], float(2**bits - 1),
        ROWS=min(_rows(columns), _ROWS), FEATURES=_FEATURES, WHOLE=columns <= _ROWS, num_warps=1,
    )  # fmt: skip
    return best.long()


def round_columns(
    weight: torch.Tensor, factor: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the twin. weight [columns, out], factor [columns, columns] -> codes and errors [columns, out]."""
    columns, features = weight.shape
    codes, errors = (torch.empty((columns, features), device=weight.device) for _ in range(2))
    _round_kernel[_grid(features)](
        weight.contiguous(), factor.contiguous(), scale.contiguous(), zero.contiguous(), codes, errors,
        columns, features, float(2**bits - 1), ROWS=_rows(columns), FEATURES=_FEATURES, num_warps=1,
    )  # fmt: skip
    return codes, errors


def descend(
    steps: torch.Tensor,
    hessian: torch.Tensor,
    pull: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    bits: int,
) -> None:
    """See the twin. steps [columns, out] changes in place; hessian [columns, columns], pull [columns, out]."""
    columns, features = steps.shape
    _descend_kernel[_grid(features)](
        steps, hessian.contiguous(), pull.contiguous(), scale.contiguous(), zero.contiguous(),
        columns, features, float(2**bits - 1), ROWS=_rows(columns), FEATURES=_FEATURES, num_warps=1,
    )  # fmt: skip


def _grid(features: int, each: int = _FEATURES) -> tuple[int]:
    """As many programs as output features, `each` of them in one, come to."""
    return (-(-features // each),)


def _rows(columns: int) -> int:
    """Triton's tiles have powers of two as sizes."""
    return max(16, 1 << (columns - 1).bit_length())
