"""A group of processes on one machine that exchange tensors through memory which all of them map.

torch.distributed's own backends speak through TCP sockets, which the walls around these processes refuse; and a bus or a
link between the cards would save little: what is summed is some gigabytes a block, at 50 GB/s.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.reduction import DupFd
from typing import Any, TypeVar

import torch

from hubbot.sweep.batches import SLOT
from hubbot.sweep.group import Failed, FailedElsewhere

__all__ = ["Exchange", "exchanges"]

T = TypeVar("T")


class Exchange:
    """One process's end: see `Group`.

    memory: a descriptor of `size` slots. peers: rank -> what is said to that process and heard from it.
    """

    def __init__(self, rank: int, memory: int, slot: int, peers: Mapping[int, Connection]) -> None:
        self.rank, self.size = rank, len(peers) + 1
        self._memory, self._slot, self._peers = memory, slot, peers
        self._mapped: torch.Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """For a process that is being spawned."""
        return _taken_over, (self.rank, DupFd(self._memory), self._slot, dict(self._peers))

    def close(self) -> None:
        """Give up this end, in a process that has handed it to another."""
        os.close(self._memory)
        for peer in self._peers.values():
            peer.close()

    def all_gather(self, value: T, /) -> list[T]:
        for peer in self._peers.values():
            peer.send(value)
        found = {self.rank: value} | {rank: peer.recv() for rank, peer in self._peers.items()}
        values = [found[rank] for rank in range(self.size)]
        if not isinstance(value, Failed) and (failed := next((v for v in values if isinstance(v, Failed)), None)):
            raise FailedElsewhere(failed.told)
        return values

    @torch.inference_mode()
    def all_reduce(self, tensor: torch.Tensor, /) -> None:
        for chunk in tensor.view(-1).split(self._slot // tensor.element_size()):  # type: ignore[no-untyped-call]
            self._add_up(chunk)

    def _add_up(self, chunk: torch.Tensor) -> None:
        """Every process sums one segment of all slots, always in the order of ranks, and fetches the others' sums."""
        slots = [self._room(rank, chunk) for rank in range(self.size)]
        ends = [len(chunk) * rank // self.size for rank in range(self.size + 1)]
        segments = list(itertools.starmap(slice, itertools.pairwise(ends)))
        slots[self.rank].copy_(chunk)
        self._barrier()
        mine = segments[self.rank]
        total = slots[0][mine].to(chunk.device, copy=True)
        for slot in slots[1:]:
            total += slot[mine].to(chunk.device)
        slots[self.rank][mine].copy_(total)
        self._barrier()
        for slot, segment in zip(slots, segments, strict=True):
            chunk[segment].copy_(slot[segment])
        self._barrier()

    def _barrier(self) -> None:
        self.all_gather(None)

    def _room(self, rank: int, like: torch.Tensor) -> torch.Tensor:
        if self._mapped is None:
            self._mapped = _map(self._memory, self.size * self._slot, pinned=like.is_cuda)
        slot = self._mapped[rank * self._slot : (rank + 1) * self._slot]
        return slot.view(like.dtype)[: like.numel()]


def exchanges(size: int, context: SpawnContext, slot: int = SLOT) -> list[Exchange]:
    """The ends of a new group, by rank; each belongs in a process of its own."""
    memory = os.memfd_create("hubbot-exchange")
    os.ftruncate(memory, size * slot)
    peers: list[dict[int, Connection]] = [{} for _ in range(size)]
    for one, other in itertools.combinations(range(size), 2):
        peers[one][other], peers[other][one] = context.Pipe()
    descriptors = [memory, *(os.dup(memory) for _ in range(size - 1))]
    return [Exchange(rank, descriptors[rank], slot, found) for rank, found in enumerate(peers)]


def _taken_over(rank: int, memory: Any, slot: int, peers: Mapping[int, Connection]) -> Exchange:
    return Exchange(rank, memory.detach(), slot, peers)


def _map(memory: int, size: int, *, pinned: bool) -> torch.Tensor:
    """Bytes of shared memory, uint8 [size]. pinned: known to CUDA, so that a card copies at the full speed of the bus."""
    found = torch.frombuffer(mmap.mmap(memory, size), dtype=torch.uint8)
    if pinned:
        cuda = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        cuda.cudaHostRegister(found.data_ptr(), size, 0)  # where that is refused, copies are slower
    return found
