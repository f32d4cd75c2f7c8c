"""Files of a release: their paths in the record, sizes and hashes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hubbot.domain import File
from hubbot.errors import UnsafeSource
from hubbot.model.digests import file_digest

__all__ = ["hashed"]


def hashed(paths: Sequence[Path], out: Path) -> list[File]:
    """Every file with its path below `out`, its size and its sha256, in the order of their paths.

    The confined child names the paths. Raises UnsafeSource for one that is a link or not below `out`:
    what is hashed here is published.
    """
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        return list(pool.map(lambda path: _hashed(path, out), sorted(paths)))


def _hashed(path: Path, out: Path) -> File:
    if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(out.resolve()):
        msg = f"{path} is no plain file below {out}, so it is no artefact to publish. Remove it and run again."
        raise UnsafeSource(msg)
    return File(path=path.relative_to(out).as_posix(), size=path.stat().st_size, sha256=file_digest(path))
