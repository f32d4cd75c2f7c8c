"""Files of a release: their paths in the record, sizes and hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hubbot.domain import File
from hubbot.errors import UnsafeSource
from hubbot.model.digests import file_digest

__all__ = ["hashing", "listed"]


def listed(paths: Sequence[Path], out: Path) -> tuple[File, ...]:
    """Every file with its path below `out` and its size, in the order of their paths; none is hashed yet.

    The confined child names the paths. Raises UnsafeSource for one that is a link or not below `out`:
    what stands here is published.
    """
    return tuple(_listed(path, out) for path in sorted(paths))


def _listed(path: Path, out: Path) -> File:
    if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(out.resolve()):
        msg = f"{path} is no plain file below {out}, so it is no artefact to publish. Remove it and run again."
        raise UnsafeSource(msg)
    return File(path=path.relative_to(out).as_posix(), size=path.stat().st_size, sha256="")


@contextmanager
def hashing(files: Sequence[File], out: Path) -> Iterator[Callable[[File], File]]:
    """Begin to hash them, side by side while others work; what it gives waits for a file's sha256 and puts it in.

    It is to be asked when nobody writes to `out` any more, and looks at the file again. Raises UnsafeSource as `listed` does,
    and where its size is another.
    """
    pool = ThreadPoolExecutor(thread_name_prefix="hash")  # hashing releases the interpreter's lock
    try:
        digests = {file.path: pool.submit(file_digest, out / file.path) for file in files}
        yield lambda file: replace(_unchanged(file, out), sha256=digests[file.path].result())
    finally:
        pool.shutdown(cancel_futures=True)


def _unchanged(file: File, out: Path) -> File:
    now = _listed(out / file.path, out)
    if now.size != file.size:
        msg = f"{out / file.path} had {file.size} bytes and has {now.size} after its load check, which changes nothing of it. Remove it and run again."
        raise UnsafeSource(msg)
    return file
