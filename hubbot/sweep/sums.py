"""Sums over the inputs of linear layers: of their squares, and of X'X."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from hubbot.formats.protocol import InputStatistics
from hubbot.sweep.group import Group

__all__ = ["Gram", "InputSums"]

_SLAB = 4096  # rows of X'X that a card computes at once
_SLAB_ON_A_CPU, _SLABS_ON_A_CPU = 256, 8  # at least as many rows, and at most as many slabs


class Gram:
    """X'X [width, width] of rows that come batch by batch.

    It is summed in slabs, of which each is computed from its own first column on: what lies left of that is known by symmetry.
    On a CPU float32. On a card the inputs are rounded to bfloat16, a batch's products are summed in float32 and the batches in
    float64, where their order leaves no trace in the float32 that is asked for: any number of cards gives the same matrix.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._on_card = device.type == "cuda"
        step = _SLAB if self._on_card else max(_SLAB_ON_A_CPU, -(-width // _SLABS_ON_A_CPU))
        self.dtype = torch.float64 if self._on_card else torch.float32
        self.slabs = {
            first: torch.zeros((min(step, width - first), width - first), dtype=self.dtype, device=device)
            for first in range(0, width, step)
        }

    def add(self, rows: torch.Tensor) -> None:
        """rows: float32 [n, width]."""
        rounded = rows.to(torch.bfloat16) if self._on_card else rows
        for first, slab in self.slabs.items():
            columns = rounded[:, first : first + len(slab)]
            if self._on_card:
                slab.add_(torch.mm(columns.T, rounded[:, first:], out_dtype=torch.float32))
            else:
                slab.addmm_(columns.T, rounded[:, first:])

    def matrix(self) -> torch.Tensor:
        """float32 [width, width]. The sums are given up for it."""
        if list(self.slabs) == [0] and not self._on_card:
            return self.slabs.pop(0)
        width = self.slabs[0].shape[1]
        whole = torch.empty((width, width), device=self.slabs[0].device)
        for first in list(self.slabs):
            slab = self.slabs.pop(first).float()
            last = first + len(slab)
            whole[first:last, first:] = slab
            whole[last:, first:last] = slab[:, last - first :].T
            own = whole[first:last, first:last]
            own.copy_(own.triu() + own.triu(1).T)
        return whole


@dataclass(slots=True)
class _Sum:
    squares: torch.Tensor
    gram: Gram | None
    tokens: int = 0

    @classmethod
    def of_nothing(cls, width: int, device: torch.device, *, hessian: bool) -> _Sum:
        gram = Gram(width, device) if hessian else None
        dtype = torch.float64 if device.type == "cuda" else torch.float32
        return cls(torch.zeros(width, dtype=dtype, device=device), gram)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self.squares, *(self.gram.slabs.values() if self.gram else ())]


@dataclass(slots=True)
class InputSums:
    """What was summed so far, by a name that the caller gives."""

    device: torch.device
    hessian: bool
    _sums: dict[str, _Sum] = field(default_factory=dict)

    def add(self, name: str, rows: torch.Tensor) -> None:
        """rows: float32 [n, width]."""
        if name not in self._sums:
            self._sums[name] = _Sum.of_nothing(rows.shape[1], self.device, hessian=self.hessian)
        found = self._sums[name]
        # summed on their own also where X'X has them: the same bytes, whatever else a sweep makes
        found.squares += rows.square().sum(0)
        if found.gram:
            found.gram.add(rows)
        found.tokens += len(rows)

    def statistics(self, group: Group) -> Iterator[tuple[str, InputStatistics]]:
        """Name -> what all processes of the group saw together. The sums are given up for it, one after another."""
        shares = group.all_gather({name: (len(found.squares), found.tokens) for name, found in self._sums.items()})
        widths = {name: width for share in shares for name, (width, _) in share.items()}
        for name, width in widths.items():
            found = self._sums.pop(name, None) or _Sum.of_nothing(width, self.device, hessian=self.hessian)
            for tensor in found.tensors:
                group.all_reduce(tensor)
            yield (
                name,
                InputStatistics(
                    squares=found.squares.float(),
                    hessian=found.gram.matrix() if found.gram else None,
                    tokens=sum(share.get(name, (0, 0))[1] for share in shares),
                ),
            )
