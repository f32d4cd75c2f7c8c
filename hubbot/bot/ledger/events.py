"""Webhook deliveries: on disk before the sender hears 2xx, delivered at least once after that."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hubbot.bot.ledger.store import Ledger
from hubbot.log.redact import redact

DAY = 86_400.0
QUEUE = "queue"  # the taker of events that `hubbot watch` takes up itself
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


def accept(ledger: Ledger, events: Sequence[Event], *, taker: str = QUEUE) -> list[bool]:
    """Store the events in one durable transaction. Returns for each whether it is new.

    A repetition within a day is only counted. A later one is news: a branch may go back and forth.
    taker: who hands them on; nobody else touches them.
    """
    now = ledger.now()
    with ledger.transaction() as db:
        return [_accept(db, event, taker, now) for event in events]


def _accept(db: sqlite3.Connection, event: Event, taker: str, now: float) -> bool:
    deliveries = db.execute(
        "INSERT INTO events (key, model, ref, sha, received, state, due, taker) "
        "VALUES (?, ?, ?, ?, ?, 'accepted', ?, ?) "
        "ON CONFLICT (key) DO UPDATE SET deliveries = deliveries + 1 RETURNING deliveries",
        (event.key, event.model, event.ref, event.sha, now, now, taker),
    ).fetchone()[0]
    if deliveries == 1:
        return True
    again = db.execute(
        "UPDATE events SET state = 'accepted', received = ?1, due = ?1, failures = 0, taker = ?4 "
        "WHERE key = ?2 AND received < ?3",
        (now, event.key, now - DAY, taker),
    )
    return again.rowcount == 1


def adopt(ledger: Ledger, taker: str) -> None:
    """Have one taker hand on whatever is not delivered yet."""
    with ledger.transaction() as db:
        db.execute("UPDATE events SET taker = ? WHERE state = 'accepted'", (taker,))


def waiting(ledger: Ledger, *, taker: str = QUEUE, quiet: float = 0.0, limit: int = 1000) -> dict[str, list[Accepted]]:
    """Model -> every event of it that is not delivered, the oldest first, for models that have one that is due.

    In which order the Hub's deliveries arrive says nothing about what is newest: they go together.
    quiet: seconds that a model's newest event has to be old; an upload comes in many commits.
    """
    now = ledger.now()
    longest = max(_DELAYS)  # after a clock was set back, nobody waits longer than the longest delay
    found: dict[str, list[Accepted]] = {}
    for row in ledger.read(
        "SELECT id, model, ref, sha, failures FROM events WHERE state = 'accepted' AND taker = ?1 AND model IN "
        "(SELECT model FROM events WHERE state = 'accepted' AND taker = ?1 GROUP BY model "
        "HAVING max(due <= ?2 OR due > ?3) AND (max(received) <= ?2 - ?4 OR max(received) > ?2)) "
        "ORDER BY id LIMIT ?5",
        taker,
        now,
        now + longest,
        quiet,
        limit,
    ):
        event = Event(model=row["model"], ref=row["ref"], old=None, sha=row["sha"])
        found.setdefault(row["model"], []).append(Accepted(id=row["id"], event=event, failures=row["failures"]))
    return found


def delivered(ledger: Ledger, group: Sequence[Accepted]) -> None:
    with ledger.transaction() as db:
        settle = "UPDATE events SET state = 'delivered', error = NULL WHERE id = ?"
        db.executemany(settle, ((accepted.id,) for accepted in group))


def undelivered(
    ledger: Ledger, group: Sequence[Accepted], error: BaseException, *, secrets: Sequence[str] = ()
) -> None:
    """A try to deliver a model's events failed: all wait for the next try; those that waited longest are given up."""
    now, text = ledger.now(), redact(str(error), *secrets)[:1000]
    fewest = min(accepted.failures for accepted in group)
    due = now + _DELAYS[min(fewest, len(_DELAYS) - 1)]
    with ledger.transaction() as db:
        for accepted in group:
            state = "given up" if accepted.failures >= len(_DELAYS) else "accepted"
            db.execute(
                "UPDATE events SET state = ?, failures = failures + 1, due = ?, error = ? WHERE id = ?",
                (state, due, text, accepted.id),
            )


def prune(ledger: Ledger, *, days: int = 30) -> None:
    """Forget what was settled long ago."""
    with ledger.transaction() as db:
        db.execute("DELETE FROM events WHERE state != 'accepted' AND received < ?", (ledger.now() - days * DAY,))
        db.execute("DELETE FROM commits WHERE at < ?", (ledger.now() - DAY,))


def counts(ledger: Ledger) -> Iterator[tuple[str, int]]:
    for row in ledger.read("SELECT state, count(*) AS n FROM events GROUP BY state"):
        yield row["state"], row["n"]
