"""Which type each tensor gets, asked of llama.cpp itself.

`llama-quantize --dry-run` on a file that has a real header and a hole for its weights prints every
tensor's target type in a few hundredths of a second, in the order in which it would write them.
Having an importance matrix changes recipes, so a stand-in for one is passed along.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hubbot import llamacpp
from hubbot.errors import Unsupported
from hubbot.formats.gguf.codec import type_named
from hubbot.formats.gguf.converter import Converted
from hubbot.formats.gguf.imatrix import ImportanceEntry, write_imatrix
from hubbot.formats.gguf.layout import Shard, lay_out
from hubbot.machine import cores

__all__ = ["Recipe", "ask_recipes", "hollow_file", "hollow_shard"]

_LINE = re.compile(
    r"^\[\s*\d+/\s*\d+\]\s+(\S+)\s+- \[[^\]]*\], type =\s*(\S+), size =.*?(?:->.*\((\S+)\))?\s*$", re.MULTILINE
)
_NEEDS_IMATRIX = "will require an imatrix"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Tensor name -> ggml type, in the order of the file."""

    kinds: dict[str, int]
    fallbacks: tuple[str, ...]  # what llama.cpp said about shapes that a type cannot hold

    @property
    def notes(self) -> tuple[str, ...]:
        """The first fallback in llama.cpp's words, and how many more there are."""
        if not self.fallbacks:
            return ()
        others = f"; so do {len(self.fallbacks) - 1} more tensors" if len(self.fallbacks) > 1 else ""
        return (" ".join(self.fallbacks[0].split()) + others,)


def ask_recipes(
    model: Converted, types: Iterable[str], work: Path, *, imatrix: bool
) -> dict[str, Recipe | Unsupported]:
    """llama.cpp's recipe for each file type; or why it has none, for a type that needs an importance matrix where
    there is none, or a shape that llama.cpp cannot quantize.

    types: names of llama-quantize; work: folder for the two small stand-in files, removed afterwards.
    """
    ones = work / "hollow.imatrix"
    with hollow_file(hollow_shard(model), work / "hollow.gguf") as hollow:
        try:
            write_imatrix(
                ones,
                {"none": ImportanceEntry(sums=np.ones(1, np.float32), tokens=1)},
                dataset="none",
                chunks=1,
                length=1,
            )
            with ThreadPoolExecutor(cores()) as pool:
                asked = {name: pool.submit(_attempt, model, name, hollow, ones if imatrix else None) for name in types}
                return {name: answer.result() for name, answer in asked.items()}
        finally:
            ones.unlink(missing_ok=True)


def hollow_shard(model: Converted) -> Shard:
    """The converted file: its header, and where its weights would lie."""
    return lay_out([(tensor, tensor.kind) for tensor in model.tensors], model.metadata, model.architecture)[0]


@contextmanager
def hollow_file(shard: Shard, path: Path) -> Iterator[Path]:
    """The file with its real header and a hole for its weights, for as long as the context lasts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as file:
            file.write(shard.header)
            file.truncate(shard.bytes)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _attempt(model: Converted, name: str, hollow: Path, imatrix: Path | None) -> Recipe | Unsupported:
    try:
        return _ask(model, name, hollow, imatrix)
    except Unsupported as refusal:
        return refusal


def _ask(model: Converted, name: str, hollow: Path, imatrix: Path | None) -> Recipe:
    options: list[str | Path] = ["--imatrix", imatrix] if imatrix else []
    answer = llamacpp.run_tool("llama-quantize", ["--dry-run", *options, hollow, name], timeout=300)
    if answer.returncode:
        said = " ".join(answer.stdout.split())[-500:]
        msg = f"llama-quantize has no recipe for {name} of this model: {said}. Leave {name} out of --variants."
        raise Unsupported(msg)
    if _NEEDS_IMATRIX in answer.stdout:
        msg = (
            f"{name} needs an importance matrix, and this run makes static files. Leave out --no-imatrix "
            f"(gguf.imatrix = true), or take a larger type than {name}."
        )
        raise Unsupported(msg)
    kinds = {match[1]: type_named(match[3] or match[2]) for match in _LINE.finditer(answer.stdout)}
    if kinds.keys() != {tensor.name for tensor in model.tensors}:
        missing = sorted({tensor.name for tensor in model.tensors} - kinds.keys())[:3]
        msg = f"llama-quantize's dry run for {name} left out {', '.join(missing) or 'no tensor but named others'}; its log has another form than hubbot reads. Use the pinned llama.cpp."
        raise Unsupported(msg)
    return Recipe(kinds=kinds, fallbacks=tuple(re.findall(r"warning: (\S+ .*falling back to\s+\S+)", answer.stdout)))
