"""Rounding into ggml's blocks by the Hessian, on a GPU: one launch for the columns of a block, one for its refinement.

The functions of the same names in `hubbot.formats.gguf.rounding` and `hubbot.formats.gguf.refinement` define what is computed; a
program holds a few output features, which never meet, for all columns. All tensors are float32, contiguous along output
features.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hubbot.kernels.gptq import _grid, _half_even, _rows

__all__ = ["refine_block", "round_columns"]

_FEATURES = 4  # output features of one program: three tiles of 256 columns then fit the registers of one warp


@triton.jit
def _whole(value, low, high):
    return tl.minimum(tl.maximum(_half_even(value), low), high)


@triton.jit
def _stored(value):
    return value.to(tl.float16).to(tl.float32)


@triton.jit
def _gain(a, b, p, r, uu, uv, vv):
    return 2 * (a * p - b * r) - (a * a * uu - 2 * a * b * uv + b * b * vv)


@triton.jit
def _best_a(p, r, uu, uv, vv):
    both = uu * vv - uv * uv
    paired = tl.div_rn(vv * p - uv * r, tl.where(both == 0, 1.0, both))
    alone = tl.where(uu > 0, tl.div_rn(p, tl.where(uu == 0, 1.0, uu)), 0.0)
    return tl.where(both > 1e-6 * uu * vv, paired, alone)


@triton.jit
def _best_b(a, r, uv, vv):
    return tl.where(vv > 0, tl.div_rn(a * uv - r, tl.where(vv == 0, 1.0, vv)), 0.0)


@triton.jit
def _round_kernel(
    rest, factor, scale_of, inverse_of, steps, errors, columns, features, low, high,
    ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    live = feature < features
    row = tl.arange(0, ROWS)
    inside = (row < columns)[:, None] & live[None, :]
    left = tl.load(rest + row[:, None] * features + feature[None, :], mask=inside, other=0.0)
    for column in range(columns):
        own = column * features + feature
        scale = tl.load(scale_of + own, mask=live, other=1.0)
        value = tl.sum(tl.where((row == column)[:, None], left, 0.0), axis=0)
        step = _whole(value * tl.load(inverse_of + own, mask=live, other=1.0), low, high)
        later = tl.load(factor + column * columns + row, mask=(row > column) & (row < columns), other=0.0)
        error = tl.div_rn(value - scale * step, tl.load(factor + column * columns + column) + 0.0 * scale)
        left -= later[:, None] * error[None, :]
        tl.store(steps + own, step, mask=live)
        tl.store(errors + own, error, mask=live)


@triton.jit
def _refine_kernel(
    d_of, dmin_of, scales, minimums, steps, hessian, pull,
    columns, features, low, high, least, largest, top,
    GROUP: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    live = feature < features
    row = tl.arange(0, ROWS)
    inside = (row < columns)[:, None] & live[None, :]
    place = row[:, None] * features + feature[None, :]
    left = tl.load(pull + place, mask=inside, other=0.0)
    held = tl.load(steps + place, mask=inside, other=0.0)
    d = tl.load(d_of + feature, mask=live, other=1.0)
    dmin = tl.load(dmin_of + feature, mask=live, other=0.0)

    if WHOLE:  # each group's scale and minimum
        for group in range(columns // GROUP):
            base = group * GROUP
            member = ((row >= base) & (row < base + GROUP))[:, None]
            own = group * features + feature
            scale = tl.load(scales + own, mask=live, other=1.0)
            minimum = tl.load(minimums + own, mask=live, other=0.0)
            on_u = left * 0.0
            on_ones = tl.zeros((ROWS,), tl.float32)
            for column in range(base, base + GROUP):
                share = tl.load(hessian + column * columns + row, mask=row < columns, other=0.0)
                step = tl.load(steps + column * features + feature, mask=live, other=0.0)
                on_u += share[:, None] * (d * step)[None, :]
                on_ones += share
            u = tl.where(member, held * d[None, :], 0.0)
            p = tl.sum(u * left, axis=0)
            uu = tl.sum(u * on_u, axis=0)
            r = dmin * tl.sum(tl.where(member, left, 0.0), axis=0)
            uv = dmin * tl.sum(tl.where(member, on_u, 0.0), axis=0)
            vv = dmin * dmin * tl.sum(tl.where((row >= base) & (row < base + GROUP), on_ones, 0.0), axis=0)
            most = d * 0.0
            a = d * 0.0
            b = d * 0.0
            centre = _half_even(scale + _best_a(p, r, uu, uv, vv))
            for shift in tl.static_range(3):
                tried_a = tl.minimum(tl.maximum(centre + (shift - 1), least), largest) - scale
                tried_b = _whole(minimum + _best_b(tried_a, r, uv, vv), 0.0, top) - minimum
                gained = _gain(tried_a, tried_b, p, r, uu, uv, vv)
                better = gained > most
                most = tl.where(better, gained, most)
                a = tl.where(better, tried_a, a)
                b = tl.where(better, tried_b, b)
            tl.store(scales + own, scale + a, mask=live)
            tl.store(minimums + own, minimum + b, mask=live)
            left -= on_u * a[None, :] - on_ones[:, None] * (b * dmin)[None, :]
        tl.debug_barrier()

    # d and dmin
    on_u = left * 0.0
    on_v = left * 0.0
    for column in range(columns):
        own = (column // GROUP) * features + feature
        share = tl.load(hessian + column * columns + row, mask=row < columns, other=0.0)
        step = tl.load(steps + column * features + feature, mask=live, other=0.0)
        on_u += share[:, None] * (step * tl.load(scales + own, mask=live, other=1.0))[None, :]
        on_v += share[:, None] * tl.load(minimums + own, mask=live, other=0.0)[None, :]
    of_row = (row // GROUP)[:, None] * features + feature[None, :]
    u = held * tl.load(scales + of_row, mask=inside, other=0.0)
    v = tl.load(minimums + of_row, mask=inside, other=0.0)
    p = tl.sum(u * left, axis=0)
    r = tl.sum(v * left, axis=0)
    uu = tl.sum(u * on_u, axis=0)
    uv = tl.sum(v * on_u, axis=0)
    vv = tl.sum(v * on_v, axis=0)
    a = _stored(d + _best_a(p, r, uu, uv, vv)) - d
    b = _stored(dmin + _best_b(a, r, uv, vv)) - dmin
    better = _gain(a, b, p, r, uu, uv, vv) > 0  # false for what float16 cannot hold
    a = tl.where(better, a, 0.0)
    b = tl.where(better, b, 0.0)
    d += a
    left -= on_u * a[None, :] - on_v * b[None, :]
    tl.store(d_of + feature, d, mask=live)
    tl.store(dmin_of + feature, dmin + b, mask=live)

    for column in range(columns):  # the steps
        own = column * features + feature
        current = tl.load(steps + own, mask=live, other=0.0)
        scale = d * tl.load(scales + (column // GROUP) * features + feature, mask=live, other=1.0)
        drawn = tl.sum(tl.where((row == column)[:, None], left, 0.0), axis=0)
        steepness = tl.load(hessian + column * columns + column) * tl.where(scale == 0, 1.0, scale)
        best = _whole(current + tl.div_rn(drawn, steepness), low, high)
        share = tl.load(hessian + column * columns + row, mask=row < columns, other=0.0)
        left -= share[:, None] * ((best - current) * scale)[None, :]
        tl.store(steps + own, best, mask=live)


def round_columns(
    rest: torch.Tensor, factor: torch.Tensor, scale: torch.Tensor, inverse: torch.Tensor, steps: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the twin. rest, scale, inverse [columns, out], factor [columns, columns] -> steps and errors [columns, out]."""
    columns, features = rest.shape
    found, errors = (torch.empty((columns, features), device=rest.device) for _ in range(2))
    _round_kernel[_grid(features, _FEATURES)](
        rest.contiguous(), factor.contiguous(), scale.contiguous(), inverse.contiguous(), found, errors,
        columns, features, float(steps[0]), float(steps[1]), ROWS=_rows(columns), FEATURES=_FEATURES, num_warps=1,
    )  # fmt: skip
    return found, errors


def refine_block(
    d: torch.Tensor,
    dmin: torch.Tensor,
    scale: torch.Tensor,
    minimum: torch.Tensor,
    steps: torch.Tensor,
    hessian: torch.Tensor,
    pull: torch.Tensor,
    *,
    group: int,
    ranges: tuple[tuple[int, int], tuple[int, int], int],
) -> None:
    """See the twin. d, dmin [1, out], scale, minimum [groups, out] and steps [columns, out] change in place.

    hessian [columns, columns]. pull [columns, out] is left as it is. ranges: of steps, of scales, and the largest minimum.
    """
    columns, features = steps.shape
    (low, high), (least, largest), top = ranges
    _refine_kernel[_grid(features, _FEATURES)](
        d, dmin, scale, minimum, steps, hessian.contiguous(), pull.contiguous(),
        columns, features, float(low), float(high), float(least), float(largest), float(top),
        GROUP=group, WHOLE=(least, largest) != (1, 1), ROWS=_rows(columns), FEATURES=_FEATURES, num_warps=1,
    )  # fmt: skip
