"""Which tensor gets which type under a budget of bytes, by the divergence that a probe of it was measured to cause.

A probe is the original with one group of matrices rounded. At the sizes that matter the divergences of probes add up to
that of all together (docs/quality.md), and of one group it grows as the squared error of its weights. So one probe a
group, and the errors of every type, tell what a mix will cost; the cheapest mix is sought among all of one size. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hubbot.settings import GgufType

__all__ = ["NARROW", "TOKENS", "TYPES", "Matrix", "allocated", "ggml_name", "grouped"]

TYPES: tuple[GgufType, ...] = (
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
)  # of what llama.cpp puts into a mix, those that any mix may hold
NARROW: tuple[GgufType, ...] = (
    "IQ4_NL",
    "Q5_0",
    "Q5_1",
    "Q8_0",
)  # that llama.cpp puts in their place where 256 divides no width
TOKENS = 8_192  # of the calibration text that probes are measured on
_STRETCHES = 16  # that the blocks are cut into at most

_BLOCK = re.compile(r"blk\.(\d+)\.")

Choice = dict[str, GgufType]  # group -> type


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A checkpoint's matrix, or the stack of its experts', that a mix may give any of the types."""

    leaves: tuple[str, ...]  # names in the checkpoint: one, or one an expert
    tensor: str  # name in the GGUF
    bytes: Mapping[GgufType, int]  # type -> its size


def grouped(matrices: Iterable[Matrix]) -> dict[str, tuple[Matrix, ...]]:
    """Matrices that are probed together and get one type: of one kind in neighbouring blocks, by the first one's name."""
    matrices = tuple(matrices)
    blocks = {int(found[1]) for matrix in matrices if (found := _BLOCK.match(matrix.tensor))}
    span = -(-(max(blocks, default=0) + 1) // _STRETCHES)
    groups: dict[tuple[int, str], list[Matrix]] = {}
    for matrix in matrices:
        found = _BLOCK.match(matrix.tensor)
        key = (int(found[1]) // span, _BLOCK.sub("", matrix.tensor)) if found else (-1, matrix.tensor)
        groups.setdefault(key, []).append(matrix)
    return {group[0].tensor: tuple(group) for group in groups.values()}


def allocated(
    costs: Mapping[str, Mapping[str, float]], sizes: Mapping[str, Mapping[GgufType, int]], budget: int
) -> Choice:
    """The types with the least sum of costs in at most `budget` bytes.

    costs, sizes: group -> type -> nats, bytes. By Lagrange's multiplier, and what is left of the budget goes where it brings most.
    Where even the smallest types are larger than the budget, they are what comes out.
    """

    def at(price: float) -> Choice:
        return {
            group: min(
                sizes[group], key=lambda kind: (costs[group][kind] + price * sizes[group][kind], sizes[group][kind])
            )
            for group in sizes
        }

    low, high = 0.0, 1e-12
    while _bytes(at(high), sizes) > budget and high < 1e6:
        high *= 4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _bytes(at(middle), sizes) > budget else (low, middle)
    return _filled(at(high), costs, sizes, budget)


def ggml_name(kind: str) -> str:
    """How ggml's logs write a type: Q4_K -> q4_K, IQ4_NL -> iq4_nl."""
    return kind.lower().replace("_k", "_K")


def _filled(
    chosen: Choice, costs: Mapping[str, Mapping[str, float]], sizes: Mapping[str, Mapping[GgufType, int]], budget: int
) -> Choice:
    while True:
        left = budget - _bytes(chosen, sizes)
        steps: Sequence[tuple[float, str, GgufType]] = [
            ((costs[group][now] - costs[group][kind]) / (sizes[group][kind] - sizes[group][now]), group, kind)
            for group, now in chosen.items()
            for kind in sizes[group]
            if 0 < sizes[group][kind] - sizes[group][now] <= left and costs[group][kind] < costs[group][now]
        ]
        if not steps:
            return chosen
        _, group, kind = max(steps)
        chosen = {**chosen, group: kind}


def _bytes(chosen: Choice, sizes: Mapping[str, Mapping[GgufType, int]]) -> int:
    return sum(sizes[group][kind] for group, kind in chosen.items())
