"""The nouns of the bot: what was seen on the Hub, what is known about it, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model as a listing of the Hub shows it; one request tells all this of a hundred models."""

    id: str
    sha: str  # commit at the head of main
    modified: str = ""  # ISO 8601, as the Hub gives it
    created: str = ""
    private: bool = False
    disabled: bool = False
    gated: bool = False
    downloads: int = 0
    likes: int = 0
    tags: tuple[str, ...] = ()
    library: str | None = None
    pipeline: str | None = None
    architecture: str | None = None  # config.architectures[0]
    quantization: str | None = None  # quant_method of config.quantization_config
    licence: str | None = None  # the Hub's id
    licence_name: str | None = None
    licence_link: str | None = None
    relation: str | None = None  # base_model_relation of the card
    base_models: tuple[str, ...] = ()
    parameters: int | None = None  # weights in safetensors
    weight_bytes: int | None = None  # bytes of those weights

    @property
    def author(self) -> str:
        return self.id.split("/", 1)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The files of one revision that enter a release: weights, tokenizer, configuration; not the README."""

    model: str
    sha: str
    files: dict[str, str]  # path -> "sha256:…" of large files, "blob:…" (git's id) of small ones
    tagged: bool | None = None  # whether a tag points at this revision; None: nobody asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A repo that hubbot published, as its hubbot.json tells."""

    repo: str
    sha: str  # commit of the repo that hubbot.json was read at
    model: str  # the source
    revision: str  # of the source
    files: dict[str, str]  # path in the source -> sha256
    settings: str  # fingerprint of the settings that shape the bytes
    version: str  # of hubbot
    variants: dict[str, str] = field(default_factory=dict)  # name -> status
    yanked: str | None = None  # the reason


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known about one candidate."""

    releases: tuple[Release, ...] = ()
    job: JobRow | None = None  # the newest one
    contents: Contents | None = None  # of the candidate's revision
    before: Contents | None = None  # of the revision that the releases were made from; no files: it is gone
    yanked: str | None = None  # by `hubbot yank`, told by the state file
