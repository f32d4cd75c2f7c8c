"""Per-layer quantization errors, arranged for a heat map: kinds of tensors down, blocks across. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hubbot.cards.escape import line
from hubbot.domain import VariantRecord

__all__ = ["LEVELS", "HeatMap", "Scale", "heat_map", "heat_style"]

LEVELS = 10
_MAX_ROWS, _MAX_BLOCKS = 40, 256
_NAMES, _CELL = 92, 9  # pixels: the column of names on a phone, the least width of a block's cell with its gap
_BLOCK = re.compile(r"^(.*?\.)?(\d+)\.(.+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Logarithmic, from the least error in a variant's blocks to the largest: what stands out is a layer."""

    low: float
    high: float

    def level(self, error: float) -> int:
        """0 (least) to LEVELS - 1 (most)."""
        if error <= self.low or self.high <= self.low:
            return 0
        share = math.log(error / self.low) / math.log(self.high / self.low)
        return min(LEVELS - 1, int(share * LEVELS))


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """rows: kind of tensor -> relative squared error by block, None where a block has no such tensor."""

    variant: str
    scale: Scale
    blocks: int
    rows: Mapping[str, tuple[float | None, ...]]
    worst: tuple[tuple[str, float], ...]  # tensors with the largest errors, the worst first
    outside: tuple[tuple[str, float], ...]  # tensors outside the blocks: embedding, head


def heat_map(variant: VariantRecord) -> HeatMap | None:
    """The errors of one variant; experts of a block count as their worst one. None without any finite error."""
    errors = {name: error for name, error in variant.layer_errors.items() if _drawn(error)}
    if not errors:
        return None
    cells: dict[str, dict[int, float]] = {}
    outside = []
    for name, error in errors.items():
        match = _BLOCK.match(name)
        if match is None or int(match[2][:6]) >= _MAX_BLOCKS:
            outside.append((line(name, limit=80), error))
            continue
        kind = line(re.sub(r"\.\d+\b", ".*", match[3].removesuffix(".weight")), limit=40)
        row = cells.setdefault(kind, {})
        block = int(match[2])
        row[block] = max(error, row.get(block, 0.0))
    kept = dict(list(cells.items())[:_MAX_ROWS])
    blocks = max((max(row) for row in kept.values()), default=-1) + 1
    drawn = [error for row in kept.values() for error in row.values()] or list(errors.values())
    return HeatMap(
        variant=variant.name,
        scale=Scale(low=min(drawn), high=max(drawn)),
        blocks=blocks,
        rows={kind: tuple(row.get(block) for block in range(blocks)) for kind, row in kept.items()},
        worst=tuple(_worst(errors, 5)),
        outside=tuple(sorted(outside, key=lambda pair: -pair[1])[:12]),
    )


def heat_style(maps: Iterable[HeatMap]) -> str:
    """CSS that keeps the cells of each map wide enough to be seen and met with a finger; the map scrolls instead."""
    counts = sorted({found.blocks for found in maps if found.blocks})
    return "".join(f".heat.of{count}{{min-width:{_NAMES + _CELL * count}px}}" for count in counts)


def _worst(errors: Mapping[str, float], count: int) -> list[tuple[str, float]]:
    return [(line(name, limit=80), error) for name, error in sorted(errors.items(), key=lambda pair: -pair[1])[:count]]


def _drawn(error: float) -> bool:
    return math.isfinite(error) and error > 0
