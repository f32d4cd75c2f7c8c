"""What is published, and what came of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hubbot.domain import Family
from hubbot.errors import HubFailed
from hubbot.hub.read.contents import RemoteFile

__all__ = [
    "MAIN",
    "LocalFile",
    "Pace",
    "Published",
    "Receipt",
    "RepoRelease",
    "hash_files",
    "keeping",
    "kept",
    "need_files",
]

MAIN = "main"
_SMALL = 64 * 2**20  # bytes; what is larger is never stored as a plain git blob
_PIECE = 1 << 20


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFile:
    path: Path
    size: int
    sha256: str
    blob_id: str | None  # git's id, of small files

    def equals(self, remote: RemoteFile | None) -> bool:
        if remote is None or remote.size != self.size:
            return False
        return remote.sha256 == self.sha256 if remote.sha256 else remote.blob_id == self.blob_id


def need_files(paths: Iterable[Path]) -> None:
    """Raise HubFailed for the first that is not there."""
    for path in paths:
        if not path.is_file():
            raise HubFailed(f"{path} is to be published and is not there. Run the job again; it makes what is missing.")


def hash_files(branches: Mapping[str, Mapping[str, Path]]) -> dict[Path, LocalFile]:
    """Size and hashes of every file, each read once."""
    paths = sorted({path for files in branches.values() for path in files.values()})
    with ThreadPoolExecutor(4) as threads:
        return dict(zip(paths, threads.map(_hashed, paths), strict=True))


def _hashed(path: Path) -> LocalFile:
    size = path.stat().st_size
    sha256 = hashlib.sha256()
    sha1 = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_PIECE):
            sha256.update(block)
            if size <= _SMALL:
                sha1.update(block)
    return LocalFile(
        path=path, size=size, sha256=sha256.hexdigest(), blob_id=sha1.hexdigest() if size <= _SMALL else None
    )


@dataclass(slots=True, kw_only=True)
class Pace:
    """A budget of commits per hour; the Hub allows about 128 to one account.

    spent: when commits were made, seconds since the epoch, oldest first; a bot fills it from its state
    and stores what `noted` is called with. allowed: asked before anything is shown to readers; raises where
    publishing is not wanted any more.
    """

    per_hour: int = 100
    longest: float = 900.0  # seconds to wait for room; beyond that publishing is refused for now
    spent: list[float] = field(default_factory=list)
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    noted: Callable[[float], None] = field(default=lambda _: None)
    allowed: Callable[[], None] = field(default=lambda: None)

    def take(self) -> None:
        """Wait until a commit is within the budget. Raises HubFailed where that takes too long, and what `allowed` raises."""
        while (wait := self._wait()) > 0:
            if wait > self.longest:
                msg = f"{self.per_hour} commits were made in the last hour, the whole budget. Publish again in {wait / 60:.0f} minutes."
                raise HubFailed(msg)
            self.sleep(wait)
        now = self.clock()
        self.spent.append(now)
        self.noted(now)

    def _wait(self) -> float:
        """Seconds until the next commit is within the budget."""
        self.allowed()
        now = self.clock()
        # a clock that went back must not freeze the bot: times to come do not count
        self.spent = [moment for moment in self.spent if now - 3600 < moment <= now]
        return 0.0 if len(self.spent) < self.per_hour else self.spent[-self.per_hour] + 3600 - now


_kept: ContextVar[Pace | None] = ContextVar("pace", default=None)


@contextmanager
def keeping(pace: Pace) -> Iterator[None]:
    """Whatever is published within the block keeps to this one budget, however many calls and repos it takes."""
    before = _kept.set(pace)
    try:
        yield
    finally:
        _kept.reset(before)


def kept(sleep: Callable[[float], None] = time.sleep) -> Pace:
    """The budget that is kept here, or one of its own for a call outside of any."""
    return _kept.get() or Pace(sleep=sleep)
