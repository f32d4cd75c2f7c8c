"""Webhook deliveries: on disk before the sender hears 2xx, delivered at least once after that."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hubbot.ledger.store import Ledger
from hubbot.mask import mask

DAY = 86_400.0
_DELAYS = (10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, DAY)  # seconds between tries to deliver; then given up


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A ref of a model repo that moved."""

    model: str
    ref: str  # refs/heads/main, refs/tags/v1
    old: str | None
    sha: str  # the commit it points at now

    @property
    def key(self) -> str:
        """The same for every repetition of a delivery."""
        return hashlib.sha256("\0".join((self.model, self.ref, self.old or "", self.sha)).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    id: int
    event: Event
    failures: int


def accept(ledger: Ledger, events: Sequence[Event]) -> list[bool]:
    """Store the events in one durable transaction. Returns for each whether it is new.

    A repetition within a day is only counted. A later one is news: a branch may go back and forth.
    """
    now = ledger.now()
    with ledger.transaction() as db:
        return [_accept(db, event, now) for event in events]


def _accept(db: sqlite3.Connection, event: Event, now: float) -> bool:
    deliveries = db.execute(
        "INSERT INTO events (key, model, ref, sha, received, state, due) VALUES (?, ?, ?, ?, ?, 'accepted', ?) "
        "ON CONFLICT (key) DO UPDATE SET deliveries = deliveries + 1 RETURNING deliveries",
        (event.key, event.model, event.ref, event.sha, now, now),
    ).fetchone()[0]
    if deliveries == 1:
        return True
    again = db.execute(
        "UPDATE events SET state = 'accepted', received = ?1, due = ?1, failures = 0 WHERE key = ?2 AND received < ?3",
        (now, event.key, now - DAY),
    )
    return again.rowcount == 1


def waiting(ledger: Ledger, *, limit: int = 1000) -> list[Accepted]:
    """Accepted events that are due, the oldest first."""
    now = ledger.now()
    longest = max(_DELAYS)  # after a clock was set back, nobody waits longer than the longest delay
    return [
        Accepted(
            id=row["id"],
            event=Event(model=row["model"], ref=row["ref"], old=None, sha=row["sha"]),
            failures=row["failures"],
        )
        for row in ledger.read(
            "SELECT id, model, ref, sha, failures FROM events "
            "WHERE state = 'accepted' AND (due <= ? OR due > ?) ORDER BY id LIMIT ?",
            now,
            now + longest,
            limit,
        )
    ]


def delivered(ledger: Ledger, ids: Sequence[int]) -> None:
    with ledger.transaction() as db:
        db.executemany("UPDATE events SET state = 'delivered', error = NULL WHERE id = ?", ((i,) for i in ids))


def undelivered(ledger: Ledger, accepted: Accepted, error: BaseException, *, secrets: Sequence[str] = ()) -> None:
    """A try to deliver failed: try later, or give up after the longest delay."""
    spent = accepted.failures >= len(_DELAYS)
    state = "given up" if spent else "accepted"
    due = ledger.now() + (0.0 if spent else _DELAYS[accepted.failures])
    with ledger.transaction() as db:
        db.execute(
            "UPDATE events SET state = ?, failures = failures + 1, due = ?, error = ? WHERE id = ?",
            (state, due, mask(str(error), *secrets)[:1000], accepted.id),
        )


def prune(ledger: Ledger, *, days: int = 30) -> None:
    """Forget what was settled long ago."""
    with ledger.transaction() as db:
        db.execute("DELETE FROM events WHERE state != 'accepted' AND received < ?", (ledger.now() - days * DAY,))
        db.execute("DELETE FROM commits WHERE at < ?", (ledger.now() - DAY,))


def counts(ledger: Ledger) -> Iterator[tuple[str, int]]:
    for row in ledger.read("SELECT state, count(*) AS n FROM events GROUP BY state"):
        yield row["state"], row["n"]
