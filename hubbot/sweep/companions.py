"""What goes with each token through the blocks beside the hidden states, as every stream's own embedding makes it.

It depends on the token alone (hubbot.sweep.given), so a table has one row for each token that the texts hold. Tables lie
on the disk, written once, when the embedding is there; a block's own one comes back to the device when its turn is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from hubbot.sweep.blocks import BlockModel
from hubbot.sweep.given import Companion, Key
from hubbot.sweep.mapped import mapped
from hubbot.sweep.windows import Windows

__all__ = ["Companions"]


class Companions:
    """folder: where the tables lie. texts: windows of one length that hold all tokens. batch: windows that pass together."""

    def __init__(self, model: BlockModel, folder: Path, texts: Sequence[Windows], batch: int) -> None:
        self._model = model
        self._folder = folder
        self._all = model.passage.companions
        self._tables = {each.table: each for each in self._all}
        self._tokens = torch.unique(torch.cat([text.tokens.flatten() for text in texts]))
        self._length, self._batch = texts[0].length, batch
        self._loaded: tuple[tuple[int, int], torch.Tensor] | None = None  # the last one that was asked for

    def make(self, stream: str) -> None:
        """Write the tables of a stream, whose embedding is in the model now."""
        tables = {table: self._open(stream, each, new=True) for table, each in self._tables.items()}
        if tables:
            for first, window in self._windows():
                for table, rows in self._model.companions(window).items():
                    some = rows.flatten(0, 1)[: len(self._tokens) - first]
                    tables[table][first : first + len(some)] = some.cpu()

    def share(self, stream: str, other: str) -> None:
        """Let a stream have the tables of another, whose embedding is the same: by a second name, for behind the walls no file points at another."""
        for each in self._tables.values():
            path, whole = self._path(stream, each), self._path(other, each)
            path.unlink(missing_ok=True)
            try:
                path.hardlink_to(whole)
            except OSError:  # a file system that has one name for each file
                shutil.copyfile(whole, path)

    def of(self, stream: str, block: int, tokens: torch.Tensor) -> dict[Key, torch.Tensor]:
        """A block's arguments that go with the tokens, int64 [windows, length], of that stream."""
        found: dict[Key, torch.Tensor] = {}
        for each in self._all:
            if each.block == block:
                places = torch.searchsorted(self._tokens, tokens)
                table = self._table(stream, each)
                found[each.key] = each.layout.given(table[places.to(table.device)])
        return found

    def _table(self, stream: str, companion: Companion) -> torch.Tensor:
        file = self._path(stream, companion).stat()
        place = (file.st_dev, file.st_ino)  # streams that share a table have names of their own for it
        if self._loaded is None or self._loaded[0] != place:
            self._loaded = None  # first, so that it makes room
            self._loaded = place, self._open(stream, companion).to(self._model.device)
        return self._loaded[1]

    def _windows(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The tokens in windows of the texts' length, with the number of the first one; the last are filled up."""
        size = self._batch * self._length
        for first in range(0, len(self._tokens), size):
            some = self._tokens[first : first + size]
            windows = -(-len(some) // self._length)
            yield (
                first,
                torch.nn.functional.pad(some, (0, windows * self._length - len(some)), value=int(some[0])).view(
                    windows, self._length
                ),
            )

    def _open(self, stream: str, companion: Companion, *, new: bool = False) -> torch.Tensor:
        """[tokens, width], mapped from its file."""
        path = self._path(stream, companion)
        if new:
            self._folder.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        return mapped(path, (len(self._tokens), companion.layout.width), companion.dtype, written=new)

    def _path(self, stream: str, companion: Companion) -> Path:
        return self._folder / f"{stream}.{companion.table}"
