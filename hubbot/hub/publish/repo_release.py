"""What is published, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hubbot.domain import Family

__all__ = [
    "MAIN",
    "Published",
    "Receipt",
    "RepoRelease",
]

MAIN = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoRelease:
    """One repo's release: every revision is complete by itself.

    branches: revision name -> path in the repo -> local file. The base, main or the first one where the
    release stands beside main's, is committed last, so that a reader who finds it finds the others. A file
    named hubbot.json says what the release is.
    """

    repo_id: str
    branches: Mapping[str, Mapping[str, Path]]
    title: str  # of commits and of the pull request
    description: str = ""  # Markdown
    private: bool = False  # of a repo that has to be created
    family: Family | None = None  # variants of hubbot.json that count for "the same release"; None: all
    recorded: Mapping[Path, str] = field(default_factory=dict)  # local file -> sha256 as it was when it was checked
    replaces: tuple[str, ...] = ()  # further patterns of files that an older release may have left here

    @property
    def base(self) -> str:
        """The branch that a pull request is merged into."""
        return MAIN if MAIN in self.branches else next(iter(self.branches), MAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One file as the Hub holds it, read back after the commit and found equal to the local one."""

    revision: str
    path: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What publishing one repo came to.

    published: the revisions hold the release now. pull-request: it waits for a maintainer, from this call or
    an earlier one (then without files). unchanged: the same release was published already. declined: its pull request was closed without merging, so nothing was done.
    """

    repo_id: str
    url: str
    status: Literal["published", "pull-request", "unchanged", "declined"]
    commits: Mapping[str, str]  # revision -> sha of the commit that holds it
    pull_request: int | None = None
    pull_request_url: str | None = None
    files: tuple[Published, ...] = ()  # compared with the local ones; none where nothing was done
    created: bool = False  # the repo was made for this
    notes: tuple[str, ...] = ()
