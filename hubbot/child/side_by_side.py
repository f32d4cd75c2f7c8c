"""Work that waits for processes of its own, several at once, each in a place of its own and with its share of the cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from queue import SimpleQueue
from threading import local
from typing import TypeVar

__all__ = ["side_by_side"]

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")


@contextmanager
def side_by_side(work: Callable[[T, P], R], tasks: Sequence[T], places: Sequence[P]) -> Iterator[Iterator[tuple[T, R]]]:
    """Begin all tasks; gives each one with its answer as it is done, and raises what the work raises.

    places: one for each thread, which does its tasks there and keeps to its own cores of this process', and so do the
    processes that it starts. Tasks not begun yet are given up where the block is left by an exception.
    """
    shares: SimpleQueue[tuple[P, set[int]]] = SimpleQueue()
    for share in zip(places, _shares(len(places)), strict=True):
        shares.put(share)
    own = local()

    def settle() -> None:
        own.place, cores = shares.get()
        _keep_to(cores)

    pool = ThreadPoolExecutor(len(places), initializer=settle)
    try:
        waiting = {pool.submit(lambda task: work(task, own.place), task): task for task in tasks}
        yield ((waiting[done], done.result()) for done in as_completed(waiting))
    finally:
        pool.shutdown(cancel_futures=True)


def _shares(count: int) -> list[set[int]]:
    """The cores that this thread may use, dealt out; none where the system cannot say."""
    if not hasattr(os, "sched_getaffinity"):
        return [set()] * count
    allowed = sorted(os.sched_getaffinity(0))
    return [set(allowed[number::count]) or set(allowed) for number in range(count)]


def _keep_to(cores: set[int]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)  # 0 is the calling thread
