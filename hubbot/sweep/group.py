"""The processes that share one sweep, a card each: what the windows of all of them sum up to.

Terms are those of torch.distributed: a group has `size` processes, each has a rank.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch

__all__ = ["ALONE", "Alone", "Group"]

T = TypeVar("T")


class Group(Protocol):
    """Calls are collective: every process makes the same ones in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_gather(self, value: T, /) -> list[T]:
        """The values of all processes, by rank. For small ones."""
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
