"""Names of GGUF files, of which several can make one model: `stem-00001-of-0000N.gguf`, as gguf-split has them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from hubbot.errors import SourceRefused

__all__ = [
    "VISION_KINDS",
    "file_stem",
    "is_text",
    "is_vision",
    "shard_names",
    "shards_of",
    "stem_of",
    "text_file",
    "vision_kind",
    "vision_name",
]

VISION_KINDS: tuple[Literal["F16", "Q8_0"], ...] = ("F16", "Q8_0")

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def file_stem(name: str) -> str:
    """What the files of a model of this name are called by: as the model, but neither hidden nor an option of a command,
    and of characters that every system has in a file's name."""
    return "".join("-" if c == "\\" or not c.isprintable() else c for c in name).lstrip("-.") or "model"


def shard_names(stem: str, count: int) -> list[str]:
    """File names: `stem.gguf`, or `stem-00001-of-0000N.gguf` for several shards."""
    return [f"{stem}.gguf"] if count == 1 else _numbered(stem, count)


def stem_of(name: str) -> str:
    """What the names of a model's shards have in common; of any other name, what stands before `.gguf`."""
    return _SHARD.sub("", name).removesuffix(".gguf")


def shards_of(path: Path) -> list[Path]:
    """All files of a model, given any one of them. Raises SourceRefused where one is missing."""
    match = _SHARD.search(path.name)
    if match is None:
        return [path]
    paths = [path.with_name(name) for name in _numbered(path.name[: match.start()], int(match[2]))]
    missing = [other.name for other in paths if not other.is_file()]
    if missing:
        msg = f"{path.name} is one of {len(paths)} files, and {', '.join(missing[:3])} is missing. Put all of them into one folder."
        raise SourceRefused(msg)
    return paths


def vision_name(name: str, kind: str) -> str:
    """The file of a model's part that sees images, as llama.cpp looks for it beside the text's: `mmproj-NAME-F16.gguf`."""
    return f"mmproj-{name}-{kind}.gguf"


def vision_kind(name: str) -> str:
    """F16 or Q8_0, by the name that `vision_name` gives."""
    return name.removesuffix(".gguf").rpartition("-")[2]


def is_vision(path: str) -> bool:
    """Whether a file, by its path, holds the part of a model that sees images."""
    return path.rpartition("/")[2].startswith("mmproj-") and path.endswith(".gguf")


def is_text(path: str) -> bool:
    """Whether a file, by its path, is a GGUF that llama.cpp loads as a language model, or a shard of one."""
    return path.endswith(".gguf") and not is_vision(path)


def text_file(paths: Iterable[Path]) -> Path:
    """Of a variant's files the one to load: the first shard. Raises StopIteration where there is none."""
    return next(path for path in sorted(paths) if is_text(path.name))


def _numbered(stem: str, count: int) -> list[str]:
    return [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
