"""What is known about a candidate, and what the rules say of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hubbot.bot.ledger.rows import JobRow
from hubbot.hub.seen import Contents, Release


class Action(StrEnum):
    RUN = "run"
    SKIP = "skip"
    WAIT = "wait"
    LOOK = "look"  # undecided until the files of the revision are listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    model: str
    revision: str
    action: Action
    rule: str  # the name that shows up in the table
    reason: str
    update: str = "replace"
    cost: int | None = None  # bytes to download and to make, about
    variants: str | None = None  # comma list that a request comes to; None: those of hubbot.toml


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known about one candidate."""

    releases: tuple[Release, ...] = ()
    job: JobRow | None = None  # the newest one
    contents: Contents | None = None  # of the candidate's revision
    before: Contents | None = None  # of the revision that the releases were made from; no files: it is gone
    yanked: str | None = None  # by `hubbot yank`, told by the state file
