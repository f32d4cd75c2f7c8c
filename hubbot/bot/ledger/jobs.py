"""The queue: one waiting and one running job per model, whoever asks and however often."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubbot.bot.ledger import mirror
from hubbot.bot.ledger.alive import lives
from hubbot.bot.ledger.rows import JobRow, JobState
from hubbot.bot.ledger.store import Ledger, sound
from hubbot.bot.verdicts import Verdict
from hubbot.log.redact import redact

HOUR = 3600.0
DELAYS = (HOUR, 6 * HOUR, 24 * HOUR)  # after the first, second and third failure; the next one parks the job
LOSSES = 3  # workers that may die on a job before that counts as a failure of the job
_MOST_COMMITS = 1000  # of one publication; the Hub takes 128 an hour
LONGEST_ERROR = 4000  # characters kept of an error's text

_COLUMNS = (
    "id, model, revision, update_mode, cause, settings, version, state, failures, due, worker, created, changed, error, "
    "variants, refused_by"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A job that this worker has to itself until it says how it ended, or dies."""

    job: int
    attempt: int
    worker: str
    row: JobRow


def enqueue_all(ledger: Ledger, verdicts: Sequence[Verdict], *, settings: str, version: str) -> list[int | None]:
    """Queue what some verdicts ask for, in one transaction. The jobs' ids; None where the very same job waits or runs already.

    A waiting job for another revision of the model goes over to this one; a parked one is dropped.
    """
    now = ledger.now()
    with ledger.transaction() as db:
        return [_enqueue(db, verdict, settings, version, now) for verdict in verdicts]


def _enqueue(db: sqlite3.Connection, verdict: Verdict, settings: str, version: str, now: float) -> int | None:
    wanted = (verdict.revision, verdict.update, settings, version, verdict.variants)
    for row in db.execute(
        "SELECT revision, update_mode, settings, version, variants FROM jobs WHERE model = ? AND state IN ('queued', 'running')",
        (verdict.model,),
    ).fetchall():
        if tuple(row) == wanted:
            return None
    db.execute(
        "UPDATE jobs SET state = 'dropped', changed = ? WHERE model = ? AND state IN ('queued', 'parked')",
        (now, verdict.model),
    )
    return db.execute(
        "INSERT INTO jobs (model, revision, update_mode, settings, version, variants, cause, state, due, created, changed) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?)",
        (verdict.model, *wanted, verdict.rule, now, now, now),
    ).lastrowid


def handed_on(ledger: Ledger, verdict: Verdict, *, settings: str, version: str) -> None:
    """Remember a job that others do: done as far as this state file goes, until the source or hubbot changes."""
    now = ledger.now()
    with ledger.transaction() as db:
        db.execute(
            "INSERT INTO jobs (model, revision, update_mode, settings, version, cause, state, due, created, changed) "
            "VALUES (?, ?, ?, ?, ?, ?, 'done', ?, ?, ?)",
            (verdict.model, verdict.revision, verdict.update, settings, version, verdict.rule, now, now, now),
        )


def claim(
    ledger: Ledger, worker: str, *, commits_per_hour: int | None = None, one_by_one: bool = False
) -> Claim | None:
    """The next job that is due, now this worker's; None where there is none or the hour's commits are spent.

    one_by_one: the worker has ended every job that it took, so one that runs under its name was left over.
    """
    with ledger.transaction() as db:
        now = ledger.now()
        _requeue_of_dead(ledger, db, now, dead=worker if one_by_one else None)
        if commits_per_hour is not None and commits_within_hour(ledger) >= commits_per_hour:
            return None
        # A wait never lasts longer than it was meant to, even if the clock was set back meanwhile.
        db.execute("UPDATE jobs SET due = ? + delay WHERE state = 'queued' AND due > ? + delay", (now, now))
        row = db.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE state = 'queued' AND due <= ? "  # noqa: S608
            "AND model NOT IN (SELECT model FROM jobs WHERE state = 'running') "
            "AND model NOT IN (SELECT model FROM yanks) ORDER BY failures, id LIMIT 1",
            (now,),
        ).fetchone()
        if row is None:
            return None
        db.execute("UPDATE jobs SET state = 'running', worker = ?, changed = ? WHERE id = ?", (worker, now, row["id"]))
        attempt = db.execute(
            "INSERT INTO attempts (job, worker, started) VALUES (?, ?, ?)", (row["id"], worker, now)
        ).lastrowid
    assert attempt is not None  # noqa: S101
    return Claim(job=row["id"], attempt=attempt, worker=worker, row=_job(ledger.path, row))


def finish(ledger: Ledger, claim: Claim, *, seconds: float) -> bool:
    """The job is done. Returns whether it was still this worker's."""
    with ledger.transaction() as db:
        _end(db, claim, "done", seconds)
        return _leave(db, claim, "state = 'done', error = NULL, losses = 0", (), ledger.now())


def fail(
    ledger: Ledger,
    claim: Claim,
    error: BaseException,
    *,
    seconds: float,
    park: bool = False,
    refused_by: str | None = None,
    delays: Sequence[float] = DELAYS,
    secrets: Sequence[str] = (),
) -> bool:
    """The job failed: it waits, each time longer, then is parked; at once with `park`, for what will not change.

    refused_by: the releases that do not know such a model; others may.
    """
    text = redact(str(error), *secrets)[:LONGEST_ERROR]
    with ledger.transaction() as db:
        _end(db, claim, "failed", seconds, type(error).__name__, text)
        db.execute("UPDATE jobs SET refused_by = ? WHERE id = ?", (refused_by, claim.job))
        return _back_off(db, claim, text, ledger.now(), park=park, delays=delays)


def requeue(ledger: Ledger, claim: Claim, *, seconds: float) -> bool:
    """The worker was told to stop: the job waits for the next one, as if it had not been touched."""
    now = ledger.now()
    with ledger.transaction() as db:
        _end(db, claim, "stopped", seconds)
        return _requeue(db, claim, now)


def drop(ledger: Ledger, claim: Claim, *, seconds: float) -> bool:
    """Nobody wants the job any more."""
    with ledger.transaction() as db:
        _end(db, claim, "stopped", seconds)
        return _leave(db, claim, "state = 'dropped'", (), ledger.now())


def lose(ledger: Ledger, claim: Claim) -> None:
    """What ran the job for this worker is gone: it waits for another try, at once unless that happens again and again."""
    with ledger.transaction() as db:
        _lose(db, claim, ledger.now())


def retry(ledger: Ledger, model: str) -> int:
    """Make the model's waiting, parked or finished job due at once, with a clean count. Returns how many that were."""
    now = ledger.now()
    with ledger.transaction() as db:
        return db.execute(
            "UPDATE jobs SET state = 'queued', failures = 0, losses = 0, due = ?2, delay = 0, error = NULL, changed = ?2 "
            "WHERE id = (SELECT max(id) FROM jobs WHERE model = ?1 AND state != 'dropped') AND state != 'running'",
            (model, now),
        ).rowcount


def cancel(ledger: Ledger, model: str, *, by: str) -> bool:
    """Drop what waits of a model, and have the worker of what runs end it. Returns whether anything runs."""
    now = ledger.now()
    with ledger.transaction() as db:
        db.execute(
            "UPDATE jobs SET state = 'dropped', changed = ? WHERE model = ? AND state IN ('queued', 'parked')",
            (now, model),
        )
        told = db.execute("UPDATE jobs SET cancelled = ? WHERE model = ? AND state = 'running'", (by, model))
        return told.rowcount == 1


def unwanted(ledger: Ledger, claim: Claim) -> str | None:
    """Why a job that runs is not wanted any more: cancelled, or its model yanked here or elsewhere; None where it is."""
    found = ledger.read("SELECT cancelled FROM jobs WHERE id = ? AND cancelled IS NOT NULL", claim.job)
    if found:
        return f"cancelled by {found[0]['cancelled']}"
    reason = mirror.yanked(ledger, claim.row.model)
    return f"taken back ({reason})" if reason else None


def last_job(ledger: Ledger, model: str) -> JobRow | None:
    """The model's newest job that was not dropped."""
    rows = ledger.read(
        f"SELECT {_COLUMNS} FROM jobs WHERE model = ? AND state != 'dropped' ORDER BY id DESC LIMIT 1",  # noqa: S608
        model,
    )
    return next((_job(ledger.path, row) for row in rows), None)


def jobs(ledger: Ledger, *states: JobState, limit: int = 1000) -> Iterator[JobRow]:
    marks = ", ".join("?" * len(states))
    for row in ledger.read(
        f"SELECT {_COLUMNS} FROM jobs WHERE state IN ({marks}) ORDER BY id DESC LIMIT ?",  # noqa: S608
        *(str(state) for state in states),
        limit,
    ):
        yield _job(ledger.path, row)


def settled(ledger: Ledger) -> frozenset[str]:
    """Models of which nothing waits or runs, and whose last job came to nothing: parked or dropped."""
    rows = ledger.read(
        "SELECT model FROM jobs AS last WHERE id = (SELECT max(id) FROM jobs WHERE model = last.model) "
        "AND state IN ('parked', 'dropped') "
        "AND NOT EXISTS (SELECT 1 FROM jobs WHERE model = last.model AND state IN ('queued', 'running'))"
    )
    return frozenset(row["model"] for row in rows)


def record_commits(ledger: Ledger, repo: str, count: int) -> None:
    with ledger.transaction() as db:
        db.execute("INSERT INTO commits (at, repo, count) VALUES (?, ?, ?)", (ledger.now(), repo, count))


def commit_times(ledger: Ledger) -> list[float]:
    """When commits were made within an hour of now, the oldest first; on either side, so that a clock set back hides none."""
    now = ledger.now()
    rows = ledger.read("SELECT at, count FROM commits WHERE at BETWEEN ? AND ? ORDER BY at", now - HOUR, now + HOUR)
    return [row["at"] for row in rows for _ in range(min(row["count"], _MOST_COMMITS))]


def commits_within_hour(ledger: Ledger) -> int:
    return len(commit_times(ledger))


def _requeue_of_dead(ledger: Ledger, db: sqlite3.Connection, now: float, *, dead: str | None = None) -> int:
    lost = 0
    alive = {dead: False} if dead else {}
    for row in db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE state = 'running'").fetchall():  # noqa: S608
        name = row["worker"]
        if name not in alive:
            alive[name] = lives(ledger.path, name)
        if alive[name]:
            continue
        lost += 1
        attempt = db.execute(
            "SELECT id FROM attempts WHERE job = ? AND worker IS ? AND outcome IS NULL", (row["id"], name)
        ).fetchone()
        _lose(
            db,
            Claim(job=row["id"], attempt=attempt["id"] if attempt else 0, worker=name, row=_job(ledger.path, row)),
            now,
        )
    return lost


def _lose(db: sqlite3.Connection, claim: Claim, now: float) -> None:
    _end(db, claim, "lost", None)
    losses = db.execute("UPDATE jobs SET losses = losses + 1 WHERE id = ? RETURNING losses", (claim.job,)).fetchone()[
        "losses"
    ]
    if losses >= LOSSES:
        text = f"{LOSSES} workers in a row died while they ran it; memory or disk may not suffice for it."
        _back_off(db, claim, text, now, park=False, delays=DELAYS)
    else:
        _requeue(db, claim, now)


def _end(
    db: sqlite3.Connection,
    claim: Claim,
    outcome: str,
    seconds: float | None,
    error_class: str | None = None,
    error: str | None = None,
) -> None:
    db.execute(
        "UPDATE attempts SET outcome = ?, seconds = ?, error_class = ?, error = ? WHERE id = ? AND outcome IS NULL",
        (outcome, seconds, error_class, error, claim.attempt),
    )


def _leave(db: sqlite3.Connection, claim: Claim, change: str, values: tuple[object, ...], now: float) -> bool:
    """Change a job that is still this worker's, and let go of it."""
    changed = db.execute(
        f"UPDATE jobs SET {change}, worker = NULL, cancelled = NULL, changed = ? WHERE id = ? AND worker IS ? AND state = 'running'",  # noqa: S608
        (*values, now, claim.job, claim.worker),
    )
    return changed.rowcount == 1


def _requeue(db: sqlite3.Connection, claim: Claim, now: float) -> bool:
    return _leave(db, claim, f"state = '{_waiting(db, claim)}', due = ?, delay = 0", (now,), now)


def _back_off(
    db: sqlite3.Connection, claim: Claim, text: str, now: float, *, park: bool, delays: Sequence[float]
) -> bool:
    failures = claim.row.failures + 1
    parked = park or failures > len(delays)
    delay = 0.0 if parked else delays[failures - 1]
    state = "parked" if parked else "queued"
    if _waiting(db, claim) == "dropped":
        state = "dropped"
    change = "state = ?, failures = ?, losses = 0, due = ?, delay = ?, error = ?"
    return _leave(db, claim, change, (state, failures, now + delay, delay, text), now)


def _waiting(db: sqlite3.Connection, claim: Claim) -> str:
    """`queued`, or `dropped` where it was cancelled, or a job for a newer revision of the model already waits."""
    over = db.execute(
        "SELECT 1 FROM jobs WHERE (model = ? AND state = 'queued') OR (id = ? AND cancelled IS NOT NULL)",
        (claim.row.model, claim.job),
    ).fetchone()
    return "dropped" if over else "queued"


def _job(path: Path, row: sqlite3.Row) -> JobRow:
    values = {key: row[key] for key in row.keys() if key not in ("state", "update_mode")}  # noqa: SIM118
    with sound(path, "jobs", row["model"]):
        return JobRow(**values, update=row["update_mode"], state=JobState(row["state"]))
