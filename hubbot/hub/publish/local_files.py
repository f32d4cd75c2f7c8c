"""The files that are published: the very bytes that were checked, whatever happens to them on the disk meanwhile."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hubbot.errors import HubFailed
from hubbot.hub.read.contents import RemoteFile

__all__ = ["CheckedFile", "LocalFile", "hash_files", "need_files"]

_SMALL = 64 * 2**20  # bytes; what is larger is never stored as a plain git blob, so its sha256 is enough
_HELD = 8 * 2**20  # bytes; what is smaller is sent from memory
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFile:
    path: Path
    size: int
    sha256: str
    blob_id: str | None  # git's id, of what was read
    content: bytes | None  # of the smallest, as it was hashed
    stamp: tuple[int, ...]  # what changes with the file: device, inode, size, times

    def equals(self, remote: RemoteFile | None) -> bool:
        if remote is None or remote.size != self.size:
            return False
        return remote.sha256 == self.sha256 if remote.sha256 else remote.blob_id == self.blob_id


def need_files(paths: Iterable[Path]) -> None:
    """Raise HubFailed for the first that is not there, or is no plain file."""
    for path in paths:
        if path.is_symlink():
            raise HubFailed(f"{path} is to be published and is a symbolic link. Run the job again in an empty folder.")
        if not path.is_file():
            raise HubFailed(f"{path} is to be published and is not there. Run the job again; it makes what is missing.")


def hash_files(branches: Mapping[str, Mapping[str, Path]], recorded: Mapping[Path, str]) -> dict[Path, LocalFile]:
    """Size and hashes of every file. Large ones whose sha256 is recorded are not read: that is done while they are sent.

    recorded: path -> sha256 as it was when the file was checked. Raises HubFailed for another one, and for links.
    """
    paths = sorted({path for files in branches.values() for path in files.values()})
    with ThreadPoolExecutor(4) as threads:
        return dict(zip(paths, threads.map(partial(_hashed, recorded=recorded), paths), strict=True))


def _hashed(path: Path, recorded: Mapping[Path, str]) -> LocalFile:
    wanted = recorded.get(path)
    with _opened(path) as stream:
        stamp = _stamp(os.fstat(stream.fileno()))
        size = os.fstat(stream.fileno()).st_size
        if wanted is not None and size > _SMALL:
            return LocalFile(path=path, size=size, sha256=wanted, blob_id=None, content=None, stamp=stamp)
        sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        content = bytearray()
        while block := stream.read(_PIECE):
            sha256.update(block)
            sha1.update(block)
            if size <= _HELD:
                content += block
    if wanted not in (None, sha256.hexdigest()):
        raise _changed(path)
    return LocalFile(
        path=path,
        size=size,
        sha256=sha256.hexdigest(),
        blob_id=sha1.hexdigest(),
        content=bytes(content) if size <= _HELD else None,
        stamp=stamp,
    )


def _opened(path: Path) -> io.FileIO:
    """A plain file, never through a link."""
    try:
        stream = io.FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        raise HubFailed(
            f"{path} is to be published and cannot be opened ({error.strerror}). Nothing of it was published."
        ) from None
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise HubFailed(f"{path} is to be published and is no plain file. Nothing of it was published.")
    return stream


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _changed(path: Path) -> HubFailed:
    return HubFailed(
        f"{path} is not what was checked: its bytes differ from hubbot.json, or changed while it was sent. Nothing of "
        "it was published. Run the job again; if the disk is sound, something else writes there."
    )


class CheckedFile(io.BufferedReader):
    """A file that is hashed while it is sent, so that a large one is read once."""

    def __init__(self, file: LocalFile) -> None:
        super().__init__(_opened(file.path), _PIECE)
        self._file, self._sha256, self._hashed = file, hashlib.sha256(), 0

    def read(self, size: int | None = -1, /) -> bytes:
        at = self.tell()
        block = super().read(size)
        new = block[self._hashed - at :] if at <= self._hashed else b""
        self._sha256.update(new)
        self._hashed += len(new)
        return block

    def check(self, *, whole: bool) -> None:
        """Raise HubFailed where the file is not, or no longer, the one that was checked.

        whole: read what was not read so far. Else a file that was not sent at all, as the Hub has it, is left alone.
        """
        if whole or self._hashed:
            self.seek(self._hashed)
            while self.read(_PIECE):
                pass
            if self._sha256.hexdigest() != self._file.sha256:
                raise _changed(self._file.path)
        if not _stamp(os.fstat(self.fileno())) == _stamp(os.lstat(self._file.path)) == self._file.stamp:
            raise _changed(self._file.path)
