"""Coordinate descent on blocks: scales, minimums and steps, each to its best value for all others of the row.

What is lowered is tr((W - Q) H (W - Q)'), row by row, span after span of columns, each with its `pull`, H (W - Q)' of its columns or
half the negative gradient, kept true to every move. No move raises it. Matrices are float32 and transposed, [in, out].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hubbot.formats.gguf.descent import SPAN, loops_on
from hubbot.formats.gguf.state import PARTS, State
from hubbot.formats.gptq.groups import subtract_product
from hubbot.kernels import kernels_on

__all__ = ["NEIGHBOURS", "inverse", "left_over", "refine_span", "refined"]

NEIGHBOURS = 32  # columns that are told of each other's moves one by one
SWEEPS = 2  # docs/quality.md has what more or fewer bring


def inverse(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale; 1 where the scale is 0, for any step will do there."""
    return torch.where(scale == 0, 1, scale).reciprocal_()


def refined(wanted: torch.Tensor, state: State, hessian: torch.Tensor, sweeps: int = SWEEPS) -> torch.Tensor:
    """Change a state in place; returns what the error of each output feature fell by, [out].

    wanted: [in, out]. hessian: [in, in].
    """
    loops = loops_on(wanted)
    refine = loops.refine_span if loops else refine_span
    lost, won = left_over(state, wanted), torch.zeros_like(wanted[0])
    for _ in range(sweeps):
        for start in range(0, len(wanted), SPAN):
            columns = slice(start, min(start + SPAN, len(wanted)))
            own, pull = hessian[columns, columns].contiguous(), hessian[columns] @ lost
            refine(state.span(columns), own, pull, wanted[columns], lost[columns], won)
    return won


def left_over(state: State, wanted: torch.Tensor) -> torch.Tensor:
    """What is wanted, [in, out], less what a state comes to."""
    loops = loops_on(wanted)
    return loops.left_over(state, wanted) if loops else wanted - state.decode()


def refine_span(
    state: State,
    hessian: torch.Tensor,
    pull: torch.Tensor,
    wanted: torch.Tensor,
    lost: torch.Tensor,
    won: torch.Tensor,
) -> None:
    """One sweep over the blocks of a span of columns, which change in place.

    hessian: [columns, columns]. pull: [columns, out], half the negative gradient. wanted: [columns, out]. lost: [columns, out], becomes
    what is wanted less what the blocks come to. won: [out], grows by what the error fell.
    """
    left, layout = pull.clone(), state.layout
    for start in range(0, len(wanted), layout.block):
        columns = slice(start, start + layout.block)
        own, before = state.span(columns), left[columns].clone()
        _refine_block(own, hessian[columns, columns], before.clone())
        after = wanted[columns] - own.decode()
        moved = lost[columns] - after
        subtract_product(left, hessian[:, columns], moved)
        won += (moved * (before + left[columns])).sum(0)
        lost[columns] = after


def _refine_block(own: State, hessian: torch.Tensor, left: torch.Tensor) -> None:
    """The parts of a block change in place. `left` is used up."""
    if kernels := kernels_on(left, "blocks"):
        parts = (getattr(own, name) for name in PARTS)
        layout = own.layout
        kernels.refine_block(
            *parts, hessian, left, group=layout.group, ranges=(layout.steps, layout.scales, layout.minimums)
        )
        return
    if own.layout.scales != (1, 1):
        _refit_groups(own, hessian, left)
    _refit_block(own, hessian, left)
    _descend(own, hessian, left)


@dataclass(frozen=True, slots=True)
class _Gain:
    """What it lowers the error by to add a * u - b * v to the weights: 2 (a p - b r) - (a a A - 2 a b B + b b C).

    u, v: [columns, out]. Of each output feature, [out].
    """

    p: torch.Tensor
    r: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor

    @classmethod
    def of(cls, u: torch.Tensor, v: torch.Tensor, hessian: torch.Tensor, left: torch.Tensor) -> _Gain:
        on_u, on_v = hessian @ u, hessian @ v
        return cls((u * left).sum(0), (v * left).sum(0), (u * on_u).sum(0), (v * on_u).sum(0), (v * on_v).sum(0))

    def at(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return 2 * (a * self.p - b * self.r) - (a * a * self.A - 2 * a * b * self.B + b * b * self.C)

    def best_a(self) -> torch.Tensor:
        """Of the best pair; with b = 0 where u and v are one direction or v is nothing."""
        both = self.A * self.C - self.B * self.B
        paired = (self.C * self.p - self.B * self.r) / both
        alone = torch.where(self.A > 0, self.p / self.A, 0)
        return torch.where(both > 1e-6 * self.A * self.C, paired, alone)

    def best_b(self, a: torch.Tensor) -> torch.Tensor:
        return torch.where(self.C > 0, (a * self.B - self.r) / self.C, 0)


def _refit_groups(own: State, hessian: torch.Tensor, left: torch.Tensor) -> None:
    """Each group's scale and minimum to the pair of whole numbers with the largest gain, of three near the best real one."""
    size = own.layout.group
    for group in range(own.groups):
        columns = slice(group * size, (group + 1) * size)
        u, v = own.d[0] * own.steps[columns], own.dmin[0].expand(size, -1)
        gain = _Gain.of(u, v, hessian[columns, columns], left[columns])
        most, a, b = torch.zeros_like(gain.p), torch.zeros_like(gain.p), torch.zeros_like(gain.p)
        scale, minimum = own.scale[group], own.minimum[group]
        for shift in (-1, 0, 1):
            tried_a = ((scale + gain.best_a()).round() + shift).clamp(*own.layout.scales) - scale
            tried_b = (minimum + gain.best_b(tried_a)).round().clamp(0, own.layout.minimums) - minimum
            gained = gain.at(tried_a, tried_b)
            better = gained > most
            most, a, b = (torch.where(better, new, old) for new, old in ((gained, most), (tried_a, a), (tried_b, b)))
        own.scale[group] += a
        own.minimum[group] += b
        subtract_product(left, hessian[:, columns], a * u - b * v)


def _refit_block(own: State, hessian: torch.Tensor, left: torch.Tensor) -> None:
    """d and dmin to the best float16 for the whole numbers that they multiply."""
    size = own.layout.group
    u, v = own.scale.repeat_interleave(size, 0) * own.steps, own.minimum.repeat_interleave(size, 0)
    gain = _Gain.of(u, v, hessian, left)
    a = _stored(own.d[0] + gain.best_a()) - own.d[0]
    b = _stored(own.dmin[0] + gain.best_b(a)) - own.dmin[0]
    better = gain.at(a, b) > 0  # false for what float16 cannot hold
    a, b = torch.where(better, a, 0), torch.where(better, b, 0)
    own.d[0] += a
    own.dmin[0] += b
    subtract_product(left, hessian, a * u - b * v)


def _stored(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.float16).to(torch.float32)


def _descend(own: State, hessian: torch.Tensor, left: torch.Tensor) -> None:
    """Every step, one after another, to the best one for all others of the block.

    A column's move is taken from what is left of the next few at once, from that of all later ones with its neighbours'.
    """
    scale, _ = own.grid()
    per_step = inverse(scale).div_(hessian.diagonal()[:, None])
    for start in range(0, len(own.steps), NEIGHBOURS):
        columns = slice(start, start + NEIGHBOURS)
        near, moves = left[columns], scale[columns].clone()
        for at, column in enumerate(range(start, start + len(near))):
            current = own.steps[column]
            best = torch.addcmul(current, near[at], per_step[column]).round_().clamp_(*own.layout.steps)
            moves[at] *= best - current
            near[at + 1 :].addr_(hessian[column, column + 1 : start + len(near)], moves[at], alpha=-1)
            own.steps[column] = best
        subtract_product(left[start + len(near) :], hessian[start + len(near) :, columns], moves)
