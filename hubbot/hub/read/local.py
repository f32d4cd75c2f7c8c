"""A model that lies in a folder of this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from hubbot.domain import Source
from hubbot.errors import SourceNotFound, SourceRefused, UnsafeSource
from hubbot.model.companions import check_companions, is_carried, is_fetched
from hubbot.model.digests import file_digest
from hubbot.model.snapshot import visible_files

__all__ = ["is_local", "local_source"]

_LONGEST_NAME = 190  # bytes of 255: `-IQ3_XXS_DH-00001-of-00012.gguf.partial` and the like come behind it


def is_local(model: str) -> bool:
    """Whether a name stands for a folder of this machine: it exists, or is written as a path."""
    return model.startswith(("/", "./", "../", "~")) or model in (".", "..") or bool(model and Path(model).is_dir())


def local_source(folder: Path, into: Path, revision: str | None, *, hashed: bool = True) -> Source:
    """A folder of this machine. One of the client's cache, all links, is gathered below `into` by hard links, under its model's name.

    hashed: whether its files are read for their sha256, which is empty otherwise.
    """
    if revision is not None:
        raise SourceRefused(f"{folder} is a local folder and has no revision {revision!r}. Leave --revision out.")
    if not folder.is_dir():
        raise SourceNotFound(f"{folder} is no folder. Name one that exists, or a Hub id such as org/name.")
    if (size := len(folder.resolve().name.encode())) > _LONGEST_NAME:
        msg = f"The folder's name has {size} bytes in UTF-8; at most {_LONGEST_NAME} leave room for the names of the files that are made of it. Rename the folder."
        raise SourceRefused(msg)
    blobs = folder.resolve().parent.parent / "blobs"
    if folder.resolve().parent.name == "snapshots" and blobs.is_dir():
        folder = _gathered(folder.resolve(), blobs, into)
    files = visible_files(folder)
    check_companions({path: file.stat().st_size for path, file in files.items() if is_fetched(path)})
    own = {path: file for path, file in files.items() if _belongs(path)}
    digests = _hashed(own) if hashed else dict.fromkeys(own, "")
    return Source(folder=str(folder.resolve()), repo=None, revision=None, files=digests)


def _gathered(snapshot: Path, blobs: Path, into: Path) -> Path:
    """The files of a cache snapshot without its links, which lead out of the folder on purpose. What is there already stays."""
    folder = into / blobs.parent.name.rpartition("--")[2]
    wanted = {folder / name: target for name, target in _linked(snapshot, blobs)}
    there = {path for path in into.rglob("*") if not path.is_dir()}
    if there == wanted.keys() and all(_is_copy(path, target) for path, target in wanted.items()):
        return folder
    if into.exists():
        shutil.rmtree(into)
    folder.mkdir(parents=True)
    for path, target in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(target, path)
        except OSError:  # another file system
            shutil.copy2(target, path)
    return folder


def _linked(snapshot: Path, blobs: Path) -> Iterator[tuple[str, Path]]:
    """The model's files of a snapshot, each with the file that it is a link to."""
    for link in sorted(snapshot.rglob("*")):
        name = link.relative_to(snapshot).as_posix()
        if not link.is_file() or name.startswith(".") or not _belongs(name):
            continue
        target = link.resolve()
        if not target.is_relative_to(blobs) and not target.is_relative_to(snapshot):
            msg = f"{name} is a symbolic link that leaves the cache it lies in. Fetch the model again."
            raise UnsafeSource(msg)
        yield name, target


def _is_copy(path: Path, target: Path) -> bool:
    """The file itself under a further name, or a copy of it on another file system."""
    own, other = path.stat(), target.stat()
    return path.samefile(target) or (own.st_size, own.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def _belongs(path: str) -> bool:
    """Whether a file is the model's: what lies in the folder itself, and below it what goes with every copy."""
    return "/" not in path or is_carried(path)


def _hashed(files: Mapping[str, Path]) -> dict[str, str]:
    """Path -> sha256."""
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        return dict(zip(files, pool.map(_sha256, files.values()), strict=True))


def _sha256(path: Path) -> str:
    seen = path.stat()
    return _sha256_of(path, seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256_of(path: Path, _size: int, _changed: int) -> str:
    """A run reads the folder for its plan and once more as its source: what has not changed is hashed once."""
    return file_digest(path)
