"""How a sweep says what it does and how far it is, to whoever shows that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

__all__ = ["Telling", "silently"]

# What is done, how many steps it has, in what unit -> to be entered; gives what is called with each number of steps done.
Telling: TypeAlias = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def silently(_what: str, _total: int, _unit: str) -> Iterator[Callable[[int], None]]:
    """For those that nobody listens to."""
    yield lambda _: None
