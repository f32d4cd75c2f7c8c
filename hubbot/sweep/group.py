"""The processes that share one sweep, a card each: what the windows of all of them sum up to.

Terms are those of torch.distributed: a group has `size` processes, each has a rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from hubbot.errors import Unsupported

__all__ = ["ALONE", "Alone", "Failed", "FailedElsewhere", "Group"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failed:
    """What a process gives to `all_gather` where it cannot go on to the call that the others make, with its reason."""

    told: str


class FailedElsewhere(Unsupported):
    """Another process of the group has said `Failed`, and all know it by now: no further word is owed to it."""


class Group(Protocol):
    """Calls are collective: every process makes the same ones in the same order. One that cannot gives `Failed` to
    `all_gather` instead, once: whatever the others were about to call raises FailedElsewhere there.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_gather(self, value: T, /) -> list[T]:
        """The values of all processes, by rank. For small ones. Whoever gives Failed gets them whatever they are."""
        ...

    def all_reduce(self, tensor: torch.Tensor, /) -> None:
        """Put the sum over all processes in the tensor's place. Contiguous, of one shape and dtype everywhere."""
        ...


class Alone:
    """The group of a single process."""

    rank = 0
    size = 1

    def all_gather(self, value: T, /) -> list[T]:
        return [value]

    def all_reduce(self, tensor: torch.Tensor, /) -> None:
        """There is nobody to add."""


ALONE = Alone()
