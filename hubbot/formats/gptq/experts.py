"""Experts that the calibration hardly reached: rounded plainly, and told.

Below half a percent of the calibration tokens a Hessian says more about those few tokens than about the expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hubbot.formats.linears import Linear
from hubbot.formats.protocol import FEWEST_TOKENS, InputStatistics
from hubbot.model.parts import Part

__all__ = ["even_statistics", "note_of", "seldom_seen"]


def seldom_seen(linears: Sequence[Linear], statistics: Mapping[str, InputStatistics]) -> list[Linear]:
    """The experts' layers that saw too few tokens for a Hessian of their own."""
    most = max((seen.tokens for seen in statistics.values()), default=0)

    def tokens(linear: Linear) -> int:
        return statistics[linear.statistics].tokens if linear.statistics in statistics else 0

    return [linear for linear in linears if linear.expert and tokens(linear) <= FEWEST_TOKENS * most]


def even_statistics(linears: Sequence[Linear], *, like: Mapping[str, InputStatistics]) -> dict[str, InputStatistics]:
    """Statistics that weigh every input alike, with which rounding is plain rounding; one object for each width.

    like: the statistics of other layers, on whose device they shall be.
    """
    device = next((seen.squares.device for seen in like.values()), None)
    even = {
        width: InputStatistics(
            squares=torch.ones(width, device=device), hessian=torch.eye(width, device=device), tokens=0
        )
        for width in {linear.in_features for linear in linears}
    }
    return {linear.statistics: even[linear.in_features] for linear in linears}


def note_of(part: Part, linears: Sequence[Linear], seldom: Sequence[Linear]) -> list[str]:
    """What a reader of the record should know of a block's experts; nothing where all were seen enough."""
    experts = sum(linear.expert for linear in linears)
    if not seldom:
        return []
    return [f"{part.name}: {len(seldom)} of {experts} expert matrices saw too few tokens and were rounded plainly"]
