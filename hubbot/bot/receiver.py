"""Writes accepted events to the state file, many in one durable transaction.

A commit costs one flush of the disk, whatever it holds. While one is under way the next deliveries
gather, so a thousand a second share a few hundred flushes and each still waits for its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hubbot.errors import LedgerFailed
from hubbot.ledger import events
from hubbot.ledger.events import Event
from hubbot.ledger.store import Ledger, open_ledger


@dataclass(slots=True)
class _Waiting:
    events: Sequence[Event]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[list[bool]]


@dataclass(slots=True)
class Receiver:
    """One thread that owns a connection to the state file."""

    path: Path
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
        return await answer

    def run(self) -> None:
        """Until the end: a state file that cannot be opened is tried again for every batch."""
        while batch := self._next():
            try:
                with open_ledger(self.path) as ledger:
                    while batch:
                        self._write(ledger, batch)
                        batch = self._next()
                    return
            except LedgerFailed as error:
                self.problem = str(error)
                _answer_all(batch, error)

    def _write(self, ledger: Ledger, batch: list[_Waiting]) -> None:
        try:
            fresh = events.accept(ledger, [event for entry in batch for event in entry.events])
        except LedgerFailed as error:
            self.problem = str(error)
            _answer_all(batch, error)
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
def receiving(path: Path) -> Iterator[Receiver]:
    """A receiver at work; what it has taken is on disk when the block ends."""
    with open_ledger(path):  # a state file that cannot be used is said before anything listens
        pass
    receiver = Receiver(path)
    thread = threading.Thread(target=receiver.run, name="receiver")
    thread.start()
    try:
        yield receiver
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
        if not loop.is_closed():
            loop.call_soon_threadsafe(_set, those)


def _set(those: list[tuple[asyncio.Future[list[bool]], list[bool] | LedgerFailed]]) -> None:
    for future, outcome in those:
        if future.done():  # the sender hung up meanwhile; its event is stored all the same
            continue
        if isinstance(outcome, LedgerFailed):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
