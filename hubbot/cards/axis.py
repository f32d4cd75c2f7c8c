"""Axes of the pictures: logarithmic where all lies above zero, else linear around zero and logarithmic beyond.

A change that is no larger than its error may stand on either side of zero; a logarithm has no place for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Axis", "axis_of", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Values low..high onto pixels first..last."""

    low: float
    high: float
    first: float
    last: float
    bend: float | None = None  # from here on, on both sides of zero, the axis is logarithmic; None: everywhere

    def __call__(self, value: float) -> float:
        low, high = self._bent(self.low), self._bent(self.high)
        share = (self._bent(max(value, self.low)) - low) / (high - low)
        return self.first + min(share, 1.0) * (self.last - self.first)

    def _bent(self, value: float) -> float:
        return math.log(value) if self.bend is None else math.asinh(value / self.bend)

    def ticks(self, room: float) -> list[float]:
        """Round values inside the axis, `room` pixels apart at least."""
        kept: list[float] = []
        for value in self._candidates():
            inside = self.low <= value * 1.0000001 and value <= self.high * 1.0000001
            if inside and all(abs(self(value) - self(other)) >= room for other in kept):
                kept.append(value)
        return sorted(kept)

    def _candidates(self) -> Iterable[float]:
        """What may stand at the axis, the best first: zero, decades, their fives and twos, or even steps."""
        if self.bend is None and self.high / self.low <= 12:
            step = _round_step((self.high - self.low) / 5)
            return [step * count for count in range(1, 400)]
        least, most = self.bend or self.low, max(abs(self.low), abs(self.high))
        powers = range(math.ceil(math.log10(most)), math.floor(math.log10(least)) - 2, -1)
        sizes = [factor * 10.0**power for factor in (1, 5, 2) for power in powers]
        return sizes if self.bend is None else [0.0, *(sign * size for size in sizes for sign in (1, -1))]


def axis_of(values: Sequence[float], errors: Sequence[float], first: float, last: float) -> Axis:
    """The axis that holds `values` with their standard errors, with room at both ends."""
    lows = [value - error for value, error in zip(values, errors, strict=True)]
    highs = [value + error for value, error in zip(values, errors, strict=True)]
    if min(lows) > 0:
        low, high = min(lows), max(highs)
        room = max((high / low) ** 0.07, 1.04)
        return Axis(low=low / room, high=high * room, first=first, last=last)
    bend = _bend(values, errors)
    low, high = math.asinh(min(lows) / bend), math.asinh(max(highs) / bend)
    room = max((high - low) * 0.07, 0.04)
    return Axis(low=bend * math.sinh(low - room), high=bend * math.sinh(high + room), first=first, last=last, bend=bend)


def _bend(values: Sequence[float], errors: Sequence[float]) -> float:
    """The middle one of the errors, below which nothing is told apart; without errors, the least value that is not zero."""
    known = sorted(error for error in errors if error > 0)
    moved = [abs(value) for value in values if value]
    most = max([*moved, *known], default=1.0)
    return max(known[len(known) // 2] if known else min(moved, default=1.0), most * 1e-9)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)


def plain(value: float) -> str:
    """A round number without an exponent, as the tables have it: 0.00005."""
    if value and not 1e-9 <= abs(value) < 1e9:
        return f"{value:g}"
    return f"{value:.9f}".rstrip("0").rstrip(".")
