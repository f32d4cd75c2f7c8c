"""File contents by sha256: small ones in memory until somebody wants the file, the others on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

SMALL = 64 * 1024


def git_blob_id(content: bytes) -> str:
    """The id that git gives a blob: SHA-1 of a short header and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git stores in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class Blobs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        self._small: dict[str, bytes] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        path = self.folder / sha256
        if sha256 in self._small and not path.exists():
            path.write_bytes(self._small[sha256])
        return path

    def put(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        if len(content) <= SMALL:
            self._small[sha256] = content
        elif not self.path(sha256).exists():
            self.path(sha256).write_bytes(content)
        return sha256

    def put_file(self, file: Path) -> str:
        """Take over a file of any size; the file itself stays where it is."""
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if not self.path(sha256).exists():
            scratch = self.scratch()
            with file.open("rb") as stream, scratch.open("wb") as copy:
                while block := stream.read(1 << 20):
                    copy.write(block)
            scratch.rename(self.path(sha256))
        return sha256

    def read(self, sha256: str) -> bytes:
        return self._small[sha256] if sha256 in self._small else self.path(sha256).read_bytes()

    def everything(self) -> bytes:
        """All contents, one after the other."""
        return b"".join([*self._small.values(), *(p.read_bytes() for p in self.folder.iterdir() if p.is_file())])

    def scratch(self) -> Path:
        """A new path for something unfinished."""
        self._count += 1
        return self.folder / f"unfinished-{self._count}"

    def adopt(self, scratch: Path, sha256: str) -> bool:
        """Keep a finished scratch file if it has the promised sha256, else drop it."""
        with scratch.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256:
            scratch.unlink()
            return False
        scratch.rename(self.path(sha256))
        return True
