"""Coordinate descent on blocks: scales, minimums and steps, each to its best value for all others of the row.

What is lowered is tr((W - Q) H (W - Q)'), row by row, with `pull` = H (W - Q)', half its negative gradient, kept true to
every move. No move raises it. Matrices are float32 and transposed, [in, out].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hubbot.formats.gguf.blocks import Blocks, Layout
from hubbot.formats.gptq.groups import subtract_product
from hubbot.kernels import kernels_on

__all__ = ["NEIGHBOURS", "PARTS", "State", "inverse", "refined"]

NEIGHBOURS = 32  # columns that are told of each other's moves one by one
SWEEPS = 2  # docs/quality.md has what more or fewer bring
PARTS = ("d", "dmin", "scale", "minimum", "steps")


@dataclass(slots=True)
class State:
    """Blocks on the way, float32 and transposed: d, dmin [blocks, out], scale, minimum [groups, out], steps [in, out]."""

    layout: Layout
    d: torch.Tensor
    dmin: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor
    steps: torch.Tensor

    @classmethod
    def of(cls, blocks: Blocks, layout: Layout, device: torch.device) -> State:
        parts = (torch.from_numpy(getattr(blocks, name)).to(device) for name in PARTS)
        return cls(layout, *(part.t().to(torch.float32).contiguous() for part in parts))

    def blocks(self) -> Blocks:
        d, dmin, *whole = (getattr(self, name).t() for name in PARTS)
        scale, minimum, steps = (part.to(torch.int16) for part in whole)
        parts = (part.contiguous().cpu().numpy() for part in (d, dmin, scale, minimum, steps))
        return Blocks(**dict(zip(PARTS, parts, strict=True)))

    @property
    def groups(self) -> int:
        """In a block."""
        return self.layout.block // self.layout.group

    def block(self, index: int) -> State:
        """One block as a view."""
        first = index * self.groups
        groups, columns = (
            slice(first, first + self.groups),
            slice(index * self.layout.block, (index + 1) * self.layout.block),
        )
        whole = slice(index, index + 1)
        return State(
            self.layout, self.d[whole], self.dmin[whole], self.scale[groups], self.minimum[groups], self.steps[columns]
        )

    def grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and minimum of every column, [in, out]."""
        scale = self.d.repeat_interleave(self.groups, 0) * self.scale
        minimum = self.dmin.repeat_interleave(self.groups, 0) * self.minimum
        return scale.repeat_interleave(self.layout.group, 0), minimum.repeat_interleave(self.layout.group, 0)

    def decode(self) -> torch.Tensor:
        scale, minimum = self.grid()
        return scale * self.steps - minimum


def inverse(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale; 1 where the scale is 0, for any step will do there."""
    return torch.where(scale == 0, 1, scale).reciprocal_()


def refined(wanted: torch.Tensor, state: State, hessian: torch.Tensor, sweeps: int = SWEEPS) -> State:
    """The state, changed in place. wanted: [in, out]. hessian: [in, in]."""
    pull = hessian @ (wanted - state.decode())
    for _ in range(sweeps):
        for index in range(len(state.d)):
            columns = slice(index * state.layout.block, (index + 1) * state.layout.block)
            own = state.block(index)
            before = own.decode()
            _refine_block(own, hessian[columns, columns], pull[columns].clone())
            subtract_product(pull, hessian[:, columns], own.decode() - before)
    return state


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
