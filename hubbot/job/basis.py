"""All that a survey's answer follows from, as one digest: what was asked, what the child can read, what reads it.

The child has a new folder of its own, no network, and no clock in what it says; what it can read, by its walls, is the model's
folder, the system, installed packages, hubbot and llama.cpp. Small files count by what they hold; a local model's weights by their
headers and by what the kernel notes when a file is written: size, times and inode.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hubbot import llamacpp
from hubbot.child.messages import SurveyQuestion
from hubbot.confine.environment import confined
from hubbot.confine.places import HUBBOT
from hubbot.confine.stage import encode
from hubbot.domain import Source
from hubbot.environment import PROCESS
from hubbot.machine import nvidia
from hubbot.model.digests import file_digest
from hubbot.settings import Settings

__all__ = ["basis"]

_LARGE = 64 * 2**20  # bytes
_MOST = 10_000  # files of a model's folder
_HEADER = 100_000_000  # bytes; the safetensors library reads no larger one
_PACKAGES = ("site-packages", "dist-packages")
_LLAMA_CPP = ("source", "build/bin", "bindings")


def basis(source: Source, settings: Settings) -> str | None:
    """sha256 in hex; None where something that the answer follows from cannot be told."""
    environment = confined(PROCESS, home=Path("/home"))
    if environment["PYTHONPATH"] != str(HUBBOT.parent):
        return None  # modules that nobody installed
    folder = Path(source.folder)
    placeless = replace(source, folder=source.name)  # where the files lie says nothing
    question = SurveyQuestion(source=placeless, settings=settings, work=Path("/work"))
    try:
        parts = [
            encode(SurveyQuestion, question).decode(),
            environment,
            [sys.version, sys.executable, platform.platform(), Path("/etc/os-release").read_text("utf-8", "replace")],
            [(card.name, card.total, card.driver) for card in nvidia.gpus_of("auto")],
            list(_model(folder, fetched=source.repo is not None)),
            [(name, file_digest(path)) for name, path in _files(HUBBOT) if "__pycache__" not in name],
            list(_packages()),
            [(part, name, _stamp(path)) for part in _LLAMA_CPP for name, path in _files(llamacpp.place() / part)],
        ]
    except (OSError, ValueError):  # a file that goes while it is looked at, or a header that is none
        return None
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _model(folder: Path, *, fetched: bool) -> Iterator[tuple[object, ...]]:
    """fetched: by hubbot, of the Hub: of weights there is the header, and a hole."""
    for number, (name, path) in enumerate(_files(folder)):
        if number == _MOST:
            msg = "more files than a model has"
            raise ValueError(msg)
        if name.endswith(".safetensors"):
            yield name, _header(path), path.stat().st_size if fetched else _stamp(path)
        elif fetched or path.stat().st_size <= _LARGE:
            yield name, file_digest(path)
        else:
            yield name, _stamp(path)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a folder, by its name there, in order."""
    for place, folders, names in os.walk(folder, onerror=_raise, followlinks=False):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            yield path.relative_to(folder).as_posix(), path


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _packages() -> Iterator[tuple[str, object]]:
    """The packages that are installed, by what an installer leaves of each."""
    for folder in dict.fromkeys(path for path in sys.path if Path(path).name in _PACKAGES):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = Path(entry.path)
            if entry.name.endswith(".pth"):
                yield entry.path, file_digest(path)
            elif entry.name.endswith((".dist-info", ".egg-info")):
                record = path / "RECORD"
                yield entry.path, _stamp(record if record.exists() else path)


def _header(path: Path) -> str:
    """Of a safetensors file: its length and its JSON."""
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if length > _HEADER:
            msg = f"{path.name} has no header"
            raise ValueError(msg)
        return hashlib.sha256(first + file.read(length)).hexdigest()


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced, though it be of the same length and its time be set back: of one with
    several names, as a cache's files get, that last is not seen, for each name that is given or taken changes the same time."""
    found = path.stat()
    changed = found.st_ctime_ns if found.st_nlink == 1 else 0
    return found.st_size, found.st_mtime_ns, changed, found.st_ino, found.st_dev
