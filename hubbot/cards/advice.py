"""What to do with a file, in a few words from what was measured of it. docs/numbers.md has the steps. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hubbot.cards.picture import Point, closer_and_no_larger
from hubbot.release.gate import RECOMMENDED_KLD

__all__ = ["advice"]

# Up to how many nats of mean divergence, and what that means for who runs it.
_STEPS = (
    (0.001, "like the original"),
    (0.01, "hardly different"),
    (RECOMMENDED_KLD, "close"),
    (0.2, "where memory is short"),
    (math.inf, "last resort"),
)


def advice(point: Point, others: Iterable[Point]) -> str:
    """The step that its divergence reaches, or another of `others` that is no larger and surely closer."""
    better = closer_and_no_larger(point, others)
    if better:
        return f"rather {min(better, key=lambda other: other.value).label}, closer and no larger"
    return next(words for limit, words in _STEPS if point.value <= limit)
