"""What is published, and what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hubbot.domain import Family
from hubbot.errors import HubFailed
from hubbot.hub.read.contents import RemoteFile

__all__ = [
    "MAIN",
    "LocalFile",
    "Published",
    "Receipt",
    "RepoRelease",
    "hash_files",
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
