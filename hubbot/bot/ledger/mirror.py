"""What the Hub last showed: sources with their cursors, models, revisions' files, releases."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from sqlite3 import Row

from pydantic import TypeAdapter

from hubbot.bot.ledger.store import Ledger, sound
from hubbot.hub.seen import Candidate, Contents, Release

PAGE = 500  # models read at once

_CANDIDATE = TypeAdapter(Candidate)
_RELEASE = TypeAdapter(Release)
_FILES = TypeAdapter(dict[str, str])

_DROP = (
    "UPDATE jobs SET state = 'dropped', changed = ? "
    "WHERE model IN (SELECT value FROM json_each(?)) AND state IN ('queued', 'parked')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceState:
    """How far a source was read."""

    name: str
    cursor: str | None = None  # lastModified up to which everything was read
    etag: str | None = None
    resume: str | None = None  # next page of a walk that was broken off
    newest: str | None = None  # what the cursor becomes when that walk ends
    sweep: int = 0
    whole: float | None = None
    polled: float | None = None
    error: str | None = None


def source_state(ledger: Ledger, name: str) -> SourceState:
    row = next(iter(ledger.read("SELECT * FROM sources WHERE name = ?", name)), None)
    return SourceState(**dict(row)) if row else SourceState(name=name)


def sources(ledger: Ledger) -> Iterator[SourceState]:
    for row in ledger.read("SELECT * FROM sources ORDER BY name"):
        yield SourceState(**dict(row))


def store_page(ledger: Ledger, state: SourceState, models: Iterable[Candidate], *, whole_ends: bool = False) -> None:
    """Store what a page showed together with how far the source now was read, at once.

    whole_ends: this was the last page of a reading of the whole source, so what it did not show is gone.
    """
    with ledger.transaction() as db:
        for model in models:
            db.execute(
                "INSERT INTO models (id, sha, candidate) VALUES (?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET sha = excluded.sha, candidate = excluded.candidate",
                (model.id, model.sha, json.dumps(asdict(model))),
            )
            db.execute(
                "INSERT INTO listings (source, model, sweep) VALUES (?, ?, ?) "
                "ON CONFLICT (source, model) DO UPDATE SET sweep = excluded.sweep",
                (state.name, model.id, state.sweep),
            )
        if whole_ends:
            gone = "DELETE FROM listings WHERE source = ? AND sweep < ? RETURNING model"
            for row in db.execute(gone, (state.name, state.sweep)).fetchall():
                unlisted = "DELETE FROM models WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM listings WHERE model = ?1)"
                db.execute(unlisted, (row["model"],))
        values = asdict(state)
        db.execute(
            f"INSERT OR REPLACE INTO sources ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",  # noqa: S608
            tuple(values.values()),
        )


def store_failure(ledger: Ledger, name: str, error: str) -> None:
    """Remember why a source could not be read; its cursor stays where it was."""
    store_page(ledger, replace(source_state(ledger, name), error=error), ())


def candidates(ledger: Ledger, names: Iterable[str]) -> Iterator[Candidate]:
    """Every model that one of the sources shows, each once, by name; read a few hundred at a time as they are asked for.

    Between two readings nothing is open, so whoever asks may write meanwhile, and so may other processes.
    """
    shown = "SELECT DISTINCT model FROM listings WHERE source IN (SELECT value FROM json_each(?)) ORDER BY model"
    ids = iter([row["model"] for row in ledger.read(shown, json.dumps(list(names)))])
    some = "SELECT id, candidate FROM models WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id"
    while page := list(islice(ids, PAGE)):
        for row in ledger.read(some, json.dumps(page)):
            yield _candidate(ledger, row)


def chosen(ledger: Ledger, models: Iterable[str]) -> Iterator[Candidate]:
    """Those of the models that any source shows."""
    return (found for model in sorted(models) if (found := candidate(ledger, model)))


def candidate(ledger: Ledger, model: str) -> Candidate | None:
    rows = ledger.read("SELECT id, candidate FROM models WHERE id = ?", model)
    return next((_candidate(ledger, row) for row in rows), None)


def contents(ledger: Ledger, model: str, sha: str) -> Contents | None:
    for row in ledger.read("SELECT files, tagged FROM contents WHERE model = ? AND sha = ?", model, sha):
        tagged = None if row["tagged"] is None else bool(row["tagged"])
        with sound(ledger.path, "contents", model):
            return Contents(model=model, sha=sha, files=_FILES.validate_json(row["files"]), tagged=tagged)
    return None


def store_contents(ledger: Ledger, found: Contents) -> None:
    with ledger.transaction() as db:
        db.execute(
            "INSERT OR REPLACE INTO contents (model, sha, files, tagged) VALUES (?, ?, ?, ?)",
            (found.model, found.sha, json.dumps(found.files), found.tagged),
        )


def releases(ledger: Ledger, model: str) -> tuple[Release, ...]:
    """The repos that were published from a model."""
    rows = ledger.read("SELECT repo, release FROM releases WHERE model = ? ORDER BY repo", model)
    return tuple(_release(ledger, row) for row in rows)


def every_release(ledger: Ledger) -> Iterator[Release]:
    """All repos that we have published."""
    for row in ledger.read("SELECT repo, release FROM releases WHERE model != '' ORDER BY repo"):
        yield _release(ledger, row)


def release_shas(ledger: Ledger) -> dict[str, str]:
    """Repo -> the commit that its hubbot.json was read at."""
    return {row["repo"]: row["sha"] for row in ledger.read("SELECT repo, sha FROM releases")}


def our_repos(ledger: Ledger) -> frozenset[str]:
    return frozenset(row["repo"] for row in ledger.read("SELECT repo FROM releases WHERE model != ''"))


def touched(ledger: Ledger) -> frozenset[str]:
    """Models that have a job, a release, or were yanked."""
    rows = ledger.read("SELECT model FROM jobs UNION SELECT model FROM releases UNION SELECT model FROM yanks")
    return frozenset(row["model"] for row in rows)


def yanked(ledger: Ledger, model: str) -> str | None:
    """Why a model was yanked, here or by the mark on its releases; None where it was not."""
    rows = ledger.read("SELECT reason FROM yanks WHERE model = ?", model)
    marks = (release.yanked for release in releases(ledger, model) if release.yanked)
    return next((row["reason"] for row in rows), None) or next(marks, None)


def store_yank(ledger: Ledger, model: str, reason: str) -> None:
    """Never run this model again, and drop what waits for it."""
    now = ledger.now()
    with ledger.transaction() as db:
        db.execute("INSERT OR REPLACE INTO yanks (model, reason, at) VALUES (?, ?, ?)", (model, reason, now))
        db.execute(_DROP, (now, json.dumps([model])))


def drop_waiting(ledger: Ledger, models: Iterable[str]) -> None:
    """Drop what waits of the models, or is parked."""
    with ledger.transaction() as db:
        db.execute(_DROP, (ledger.now(), json.dumps(list(models))))


def forget_yank(ledger: Ledger, model: str) -> bool:
    """Whether there was one."""
    with ledger.transaction() as db:
        return db.execute("DELETE FROM yanks WHERE model = ?", (model,)).rowcount == 1


def store_release(ledger: Ledger, release: Release) -> None:
    with ledger.transaction() as db:
        db.execute(
            "INSERT OR REPLACE INTO releases (repo, sha, model, release) VALUES (?, ?, ?, ?)",
            (release.repo, release.sha, release.model, json.dumps(asdict(release))),
        )


def forget_release(ledger: Ledger, repo: str) -> None:
    with ledger.transaction() as db:
        db.execute("DELETE FROM releases WHERE repo = ?", (repo,))


def _candidate(ledger: Ledger, row: Row) -> Candidate:
    with sound(ledger.path, "models", row["id"]):
        return _CANDIDATE.validate_json(row["candidate"])


def _release(ledger: Ledger, row: Row) -> Release:
    with sound(ledger.path, "releases", row["repo"]):
        return _RELEASE.validate_json(row["release"])
