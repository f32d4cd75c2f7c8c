"""Writes accepted events to the state file, many in one durable transaction.

A commit costs one flush of the disk, whatever it holds. While one is under way the next deliveries
gather, so a thousand a second share a few hundred flushes and each still waits for its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from hubbot.bot.ledger import events
from hubbot.bot.ledger.events import Event
from hubbot.bot.ledger.store import Ledger, open_ledger
from hubbot.errors import LedgerFailed

PATIENCE = 45.0  # seconds that a request waits for the disk; longer than another writer is waited for


@dataclass(slots=True)
class _Waiting:
    events: Sequence[Event]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[list[bool]]


@dataclass(slots=True)
class Receiver:
    """One thread that owns a connection to the state file."""

    path: Path
    taker: str = events.QUEUE  # who hands the events on
    problem: str | None = None  # why the last transaction failed
    transactions: int = 0
    _waiting: list[_Waiting] = field(default_factory=list)
    _some: threading.Condition = field(default_factory=threading.Condition)
    _ended: bool = False

    async def store(self, found: Sequence[Event]) -> list[bool]:
        """Returns once the events are on disk: for each whether it is new. Raises LedgerFailed if they are not."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[bool]] = loop.create_future()
        with self._some:
            self._waiting.append(_Waiting(found, loop, answer))
            self._some.notify()
        try:
            async with asyncio.timeout(PATIENCE):
                return await answer
        except TimeoutError:
            raise LedgerFailed(f"{self.path} took longer than {PATIENCE:.0f} s; see what holds it.") from None

    def run(self) -> None:
        """Until the end: a state file that cannot be opened is tried again for every batch."""
        while batch := self._next():
            try:
                with open_ledger(self.path) as ledger:
                    while batch:
                        self._write(ledger, batch)
                        batch = self._next()
                    return
            except Exception as error:  # noqa: BLE001 -- the thread must outlive whatever it meets
                self._refuse(batch, error)

    def _refuse(self, batch: list[_Waiting], error: Exception) -> None:
        known = error if isinstance(error, LedgerFailed) else LedgerFailed(f"{type(error).__name__}: {error}")
        self.problem = str(known)
        _answer_all(batch, known)

    def _write(self, ledger: Ledger, batch: list[_Waiting]) -> None:
        try:
            fresh = events.accept(ledger, [event for entry in batch for event in entry.events], taker=self.taker)
        except Exception as error:  # noqa: BLE001 -- the next batch may fare better
            self._refuse(batch, error)
            return
        self.problem = None
        self.transactions += 1
        _answer_all(batch, fresh)

    def end(self) -> None:
        with self._some:
            self._ended = True
            self._some.notify()

    def _next(self) -> list[_Waiting]:
        """Everything that waits; empty when nothing does and the end has come."""
        with self._some:
            while not self._waiting and not self._ended:
                self._some.wait()
            batch, self._waiting = self._waiting, []
            return batch


@contextmanager
def receiving(path: Path, *, taker: str = events.QUEUE) -> Iterator[tuple[Receiver, threading.Thread]]:
    """A receiver at work and its thread; what it has taken is on disk when the block ends.

    taker: who hands the events on from now on, also those that an earlier start has left.
    """
    with open_ledger(path) as ledger:  # a state file that cannot be used is said before anything listens
        events.adopt(ledger, taker)
    receiver = Receiver(path, taker)
    thread = threading.Thread(target=receiver.run, name="receiver")
    thread.start()
    try:
        yield receiver, thread
    finally:
        receiver.end()
        thread.join()


def _answer_all(batch: list[_Waiting], outcome: list[bool] | LedgerFailed) -> None:
    """Wake every waiting request, with one call into each event loop."""
    answers: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[list[bool]], list[bool] | LedgerFailed]]] = {}
    start = 0
    for entry in batch:
        end = start + len(entry.events)
        own = outcome if isinstance(outcome, LedgerFailed) else outcome[start:end]
        answers.setdefault(entry.loop, []).append((entry.answer, own))
        start = end
    for loop, those in answers.items():
        with suppress(RuntimeError):  # the loop has ended, and its requests with it
            loop.call_soon_threadsafe(_set, those)


def _set(those: list[tuple[asyncio.Future[list[bool]], list[bool] | LedgerFailed]]) -> None:
    for future, outcome in those:
        if future.done():  # the sender hung up meanwhile; its event is stored all the same
            continue
        if isinstance(outcome, LedgerFailed):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
