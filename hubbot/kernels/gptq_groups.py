"""A block of columns of the GPTQ solver, with all its groups, in one launch.

The functions of the same names in `hubbot.formats.gptq.groups` define what is computed. A program holds a group of
its output features; what a group leaves to the rest of the block goes through memory, behind a barrier.

All tensors are float32, contiguous along output features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hubbot.kernels.gptq import _cost, _grid, _half_even, _nearest, _rows

__all__ = ["refine_groups", "round_groups"]

_FEATURES = 8  # output features of one program: with one warp, nothing has to wait for another
_LARGEST = tl.constexpr(65280.0)  # that float16 and bfloat16 both hold


@triton.jit
def _storable(scale):
    bits = scale.to(tl.float16).to(tl.float32).to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536  # to bfloat16, half to even
    return rounded.to(tl.float32, bitcast=True)


@triton.jit
def _usable(scale):
    rounded = _storable(tl.minimum(scale, _LARGEST))
    return tl.where(rounded > 0, rounded, 1.0)


@triton.jit
def _fit(tile, cost, inside, shares, share_count, top, middle, SYMMETRIC: tl.constexpr):
    """Scale and zero of the tried grid with the least cost, the first of equal ones, per output feature."""
    low = tl.minimum(tl.min(tl.where(inside, tile, 0.0), axis=0), 0.0)
    high = tl.maximum(tl.max(tl.where(inside, tile, 0.0), axis=0), 0.0)
    least = high * 0.0 + float("inf")
    best_scale = high * 0.0 + 1.0
    best_zero = high * 0.0 + middle
    for index in range(share_count):
        share = tl.load(shares + index)
        if SYMMETRIC:
            scale = _usable(tl.div_rn(share * tl.maximum(high, -low) * 2.0, top + 0.0 * high))
            for side in tl.static_range(2):
                tried = scale if side == 0 else -scale
                zero = middle + 0.0 * high
                error = _cost(tile, cost, tried, zero, top)
                better = error < least
                least = tl.where(better, error, least)
                best_scale = tl.where(better, tried, best_scale)
        else:
            scale = _usable(tl.div_rn(share * (high - low), top + 0.0 * high))
            centre = _half_even(tl.div_rn(-low * share, scale))
            for shift in tl.static_range(5):
                zero = tl.minimum(tl.maximum(centre + (shift - 2), 0.0), top)
                error = _cost(tile, cost, scale, zero, top)
                better = error < least
                least = tl.where(better, error, least)
                best_scale = tl.where(better, scale, best_scale)
                best_zero = tl.where(better, zero, best_zero)
    return best_scale, best_zero


@triton.jit
def _round_groups_kernel(
    weight, factor, importance, shares, codes, errors, scales, zeros,
    columns, features, share_count, top, middle,
    GROUP: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr, SYMMETRIC: tl.constexpr,
):  # fmt: skip
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    live = feature < features
    row = tl.arange(0, TILE)
    every = tl.arange(0, ROWS)
    for group in range(columns // GROUP):
        base = group * GROUP
        inside = (row < GROUP)[:, None] & live[None, :]
        left = tl.load(weight + (base + row)[:, None] * features + feature[None, :], mask=inside, other=0.0)
        cost = tl.load(importance + base + row, mask=row < GROUP, other=0.0)
        scale, zero = _fit(left, cost, inside, shares, share_count, top, middle, SYMMETRIC)
        tl.store(scales + group * features + feature, scale, mask=live)
        tl.store(zeros + group * features + feature, zero, mask=live)
        for column in range(GROUP):
            value = tl.sum(tl.where((row == column)[:, None], left, 0.0), axis=0)
            code = _nearest(value, scale, zero, top)
            own = factor + (base + column) * columns + base
            later = tl.load(own + row, mask=(row >= column) & (row < GROUP), other=0.0)
            error = tl.div_rn(value - scale * (code - zero), tl.load(own + column) + 0.0 * zero)
            left -= later[:, None] * error[None, :]
            tl.store(codes + (base + column) * features + feature, code, mask=live)
            tl.store(errors + (base + column) * features + feature, error, mask=live)
        if base + GROUP < columns:
            tl.debug_barrier()
            after = ((every >= base + GROUP) & (every < columns))[:, None] & live[None, :]
            place = weight + every[:, None] * features + feature[None, :]
            rest = tl.load(place, mask=after, other=0.0)
            for column in range(GROUP):
                error = tl.load(errors + (base + column) * features + feature, mask=live, other=0.0)
                share = tl.load(factor + (base + column) * columns + every, mask=every < columns, other=0.0)
                rest -= share[:, None] * error[None, :]
            tl.store(place, rest, mask=after)
            tl.debug_barrier()


@triton.jit
def _refine_groups_kernel(
    steps, hessian, pull, scales, zeros, moved, columns, features, top,
    GROUP: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    live = feature < features
    row = tl.arange(0, TILE)
    every = tl.arange(0, ROWS)
    for group in range(columns // GROUP):
        base = group * GROUP
        inside = (row < GROUP)[:, None] & live[None, :]
        place = (base + row)[:, None] * features + feature[None, :]
        current = tl.load(steps + place, mask=inside, other=0.0)
        drawn = tl.load(pull + place, mask=inside, other=0.0)
        scale = tl.load(scales + group * features + feature, mask=live, other=1.0)
        zero = tl.load(zeros + group * features + feature, mask=live, other=0.0)
        before = current * scale[None, :]
        slope = current * 0.0
        for column in range(GROUP):
            step = tl.sum(tl.where((row == column)[:, None], current, 0.0), axis=0)
            own = hessian + (base + column) * columns + base
            slope += tl.load(own + row, mask=row < GROUP, other=0.0)[:, None] * step[None, :]
        curvature = tl.sum(current * slope, axis=0)
        gain = tl.div_rn(tl.sum(current * drawn, axis=0), curvature)
        best = _storable(scale + gain)
        usable = (curvature > 0) & (best * scale > 0) & (tl.abs(best) < float("inf"))
        fitted = tl.where(usable, best, scale)
        drawn -= slope * (fitted - scale)[None, :]
        for column in range(GROUP):
            here = (row == column)[:, None]
            step = tl.sum(tl.where(here, current, 0.0), axis=0)
            own = hessian + (base + column) * columns + base
            steepness = tl.load(own + column) + 0.0 * zero
            wanted = step * fitted + tl.div_rn(tl.sum(tl.where(here, drawn, 0.0), axis=0), steepness)
            found = _nearest(wanted, fitted, zero, top) - zero
            others = tl.load(own + row, mask=row < GROUP, other=0.0)
            drawn -= others[:, None] * ((found - step) * fitted)[None, :]
            current = tl.where(here, found[None, :], current)
        tl.store(steps + place, current, mask=inside)
        tl.store(moved + place, current * fitted[None, :] - before, mask=inside)
        tl.store(scales + group * features + feature, fitted, mask=live)
        if base + GROUP < columns:
            tl.debug_barrier()
            all_inside = (every < columns)[:, None] & live[None, :]
            all_place = pull + every[:, None] * features + feature[None, :]
            rest = tl.load(all_place, mask=all_inside, other=0.0)
            for column in range(GROUP):
                change = tl.load(moved + (base + column) * features + feature, mask=live, other=0.0)
                share = tl.load(hessian + (base + column) * columns + every, mask=every < columns, other=0.0)
                rest -= share[:, None] * change[None, :]
            tl.store(all_place, rest, mask=all_inside)
            tl.debug_barrier()


def round_groups(
    weight: torch.Tensor,
    factor: torch.Tensor,
    importance: torch.Tensor,
    size: int,
    bits: int,
    shares: torch.Tensor,
    *,
    symmetric: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See the twin. weight [columns, out] changes in place. Returns codes, errors, scales, zeros."""
    columns, features = weight.shape
    factor = factor.contiguous()
    codes, errors = (torch.empty((columns, features), device=weight.device) for _ in range(2))
    scales, zeros = (torch.empty((columns // size, features), device=weight.device) for _ in range(2))
    top = float(2**bits - 1)
    _round_groups_kernel[_grid(features)](
        weight, factor, importance.contiguous(), shares.to(weight.device), codes, errors, scales, zeros,
        columns, features, len(shares), top, float(2 ** (bits - 1)) if symmetric else 0.0,
        GROUP=size, TILE=_rows(size), ROWS=_rows(columns), FEATURES=_FEATURES, SYMMETRIC=symmetric, num_warps=1,
    )  # fmt: skip
    return codes, errors, scales, zeros


def refine_groups(
    steps: torch.Tensor,
    hessian: torch.Tensor,
    pull: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    size: int,
    bits: int,
) -> torch.Tensor:
    """See the twin. steps and pull [columns, out] and scales [groups, out] change in place.

    Returns how the decoded weights moved, [columns, out].
    """
    columns, features = steps.shape
    hessian = hessian.contiguous()
    moved = torch.empty_like(steps)
    _refine_groups_kernel[_grid(features)](
        steps, hessian, pull, scales, zeros, moved, columns, features, float(2**bits - 1),
        GROUP=size, TILE=_rows(size), ROWS=_rows(columns), FEATURES=_FEATURES, num_warps=1,
    )  # fmt: skip
    return moved
