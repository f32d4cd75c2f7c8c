"""Where the labels of a picture stand: beside their marks, over nothing else.

A label that finds no place near its mark stands elsewhere in the frame, and the picture draws a line to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

__all__ = ["GLYPH", "NARROW", "WIDE", "Box", "Frame", "place_labels"]

_FONT = 12.5
GLYPH = 0.62 * _FONT  # width of a character, on the broad side

Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Frame:
    """The drawing's size and where its axes stand, in pixels."""

    width: int = 860
    height: int = 470
    left: int = 76
    top: int = 92

    @property
    def right(self) -> int:
        return self.width - 24

    @property
    def bottom(self) -> int:
        return self.height - 54


WIDE = Frame()
NARROW = Frame(width=400, height=440, left=62, top=118)  # for a phone, where a wide one would shrink out of sight


def place_labels(
    labels: Sequence[str], spots: Sequence[tuple[float, float]], order: Sequence[int], frame: Frame = WIDE
) -> list[Box | None]:
    """A box for every label, in pixels, that touches no other box and no mark; None where there is no room.

    Greedy in `order`, with places ever farther from the mark, and then wherever the frame has room.
    """
    marks: list[Box] = [(x - 9, y - 9, x + 9, y + 9) for x, y in spots]
    placed: list[Box | None] = [None] * len(labels)
    for index in order:
        width = len(labels[index]) * GLYPH + 4
        taken = [box for box in placed if box] + marks
        free = (
            box
            for box in chain(_places(spots[index], width), _anywhere(spots[index], width, frame))
            if _inside(box, frame) and not any(_meet(box, other) for other in taken)
        )
        placed[index] = next(free, None)
    return placed


def _places(spot: tuple[float, float], width: float) -> list[Box]:
    x, y = spot
    half = (_FONT + 5) / 2
    boxes = []
    for gap in (12.0, 20.0, 32.0, 46.0, 64.0):
        side, rise = gap + width / 2, gap + half
        for dx, dy in (
            (side, 0),
            (-side, 0),
            (0, -rise),
            (0, rise),
            (side, -rise),
            (-side, -rise),
            (side, rise),
            (-side, rise),
        ):
            boxes.append((x + dx - width / 2, y + dy - half, x + dx + width / 2, y + dy + half))
    return boxes


def _anywhere(spot: tuple[float, float], width: float, frame: Frame) -> Iterator[Box]:
    """Places all over the frame, the nearest first."""
    height = _FONT + 5
    boxes = [
        (float(x), float(y), x + width, y + height)
        for x in range(frame.left + 2, frame.width - 8, 16)
        for y in range(frame.top - 8, frame.bottom, 9)
    ]
    yield from sorted(boxes, key=lambda box: math.dist(spot, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)))


def _inside(box: Box, frame: Frame) -> bool:
    """Right of the vertical axis, above the horizontal one, clear of the legend."""
    left, top, right, bottom = box
    return left >= frame.left + 2 and right <= frame.width - 8 and top >= frame.top - 8 and bottom <= frame.bottom - 1


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
