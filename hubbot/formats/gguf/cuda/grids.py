"""The grids of the iq types and, for every point beside them, the nearest of theirs: what ggml_quantize_init builds.

ggml keeps its tables to itself, and they take it seconds; here a card sorts all distances at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hubbot.formats.gguf.cuda.text import GgmlText

__all__ = ["GRIDS", "Grid", "Tables", "tables"]

_AT_ONCE = 4096  # places whose distances are sorted together


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """points: the array of ggml's text that lists them, `bits` a coordinate.

    slot: its place in ggml's iq2_data or iq3_data. levels: how many distances count as near.
    """

    points: str
    slot: int
    bits: int
    dimensions: int
    map_size: int
    levels: int


GRIDS = {
    "iq2_xxs": Grid(points="kgrid_2bit_256", slot=0, bits=2, dimensions=8, map_size=43692, levels=2),
    "iq2_xs": Grid(points="kgrid_2bit_512", slot=1, bits=2, dimensions=8, map_size=43692, levels=2),
    "iq1_s": Grid(points="kgrid_1bit_2048", slot=2, bits=2, dimensions=8, map_size=43692, levels=3),
    "iq1_m": Grid(points="kgrid_1bit_2048", slot=2, bits=2, dimensions=8, map_size=43692, levels=3),
    "iq2_s": Grid(points="kgrid_2bit_1024", slot=3, bits=2, dimensions=8, map_size=43692, levels=1),
    "iq3_xxs": Grid(points="kgrid_256", slot=0, bits=3, dimensions=4, map_size=4096, levels=2),
    "iq3_s": Grid(points="kgrid_512", slot=1, bits=3, dimensions=4, map_size=4096, levels=3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """points: uint8 [n, dimensions], odd numbers. map: int32 [map size], a point's number, or -1 less where its neighbours begin.

    neighbours: int16 [...], for each place how many follow, then their numbers, nearest first.
    """

    points: torch.Tensor
    map: torch.Tensor
    neighbours: torch.Tensor


def tables(text: GgmlText, grid: Grid, device: torch.device) -> Tables:
    """What a type's encoder searches in."""
    codes = torch.tensor(text.numbers(grid.points), device=device)
    points = _coordinates(codes, grid)
    found = torch.full((grid.map_size,), -1, dtype=torch.int64, device=device)
    found[codes] = torch.arange(len(codes), device=device)
    beside = (found < 0).nonzero()[:, 0]
    counts, lists = [], []
    for places in torch.split(beside, _AT_ONCE):
        near, keep = _nearest(_coordinates(places, grid), points, grid.levels)
        counts.append(keep.sum(1))
        with_count = torch.cat([counts[-1][:, None], near], 1)
        lists.append(with_count[torch.cat([torch.ones_like(keep[:, :1]), keep], 1)])
    lengths = torch.cat(counts) + 1
    found[beside] = -(lengths.cumsum(0) - lengths) - 1
    return Tables(points=points.to(torch.uint8), map=found.to(torch.int32), neighbours=torch.cat(lists).to(torch.int16))


def _coordinates(codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    """int64 [n] -> int64 [n, dimensions], the odd numbers that a code's bits stand for."""
    shifts = grid.bits * torch.arange(grid.dimensions, device=codes.device)
    coordinates: torch.Tensor = 2 * (codes[:, None] >> shifts & (2**grid.bits - 1)) + 1
    return coordinates


def _nearest(places: torch.Tensor, points: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points by rising distance from each place, of equal ones the first; and which are among the nearest `levels` distances."""
    distance = torch.zeros((len(places), len(points)), dtype=torch.int32, device=points.device)
    for axis in range(points.shape[1]):
        distance += (places[:, axis, None] - points[None, :, axis]).square().to(torch.int32)
    ordered, order = distance.sort(dim=1, stable=True)
    level = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    keep = torch.cat([torch.ones_like(level[:, :1], dtype=torch.bool), level < levels], 1)
    return order, keep
