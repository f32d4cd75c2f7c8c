"""One row of the queue."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    PARKED = "parked"
    DROPPED = "dropped"  # replaced by a job for a newer revision, or taken back


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job as the ledger knows it."""

    id: int
    model: str
    revision: str
    update: str  # replace | revision
    cause: str  # the rule that asked for it
    settings: str  # fingerprint
    version: str  # of hubbot
    state: JobState
    failures: int
    due: float  # seconds since the epoch
    worker: str | None
    created: float
    changed: float
    error: str | None
    variants: str | None = None  # comma list that a request asked for; None: those of hubbot.toml
    refused_by: str | None = None  # the releases that do not know its model (Policy.releases); None: no such refusal
