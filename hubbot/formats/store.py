"""Safetensors shards while they are written: laid out whole at once, filled tensor by tensor.

Bytes go to their place with pwrite, so parts may arrive in any order, from any thread, and again after a kill. Nothing but
two pieces of a tensor that lies on a card is held in memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hubbot.errors import Unsupported
from hubbot.formats.shards import TensorSpec, header, shard_bytes, shard_names

__all__ = ["ShardStore"]

_CHUNK = 16 * 2**20  # bytes


@dataclass(frozen=True, slots=True)
class _Place:
    file: str
    offset: int  # of the first element, from the file's beginning
    spec: TensorSpec


class ShardStore:
    """The shards of one folder, of a layout that never changes."""

    def __init__(self, folder: Path, shards: Sequence[Sequence[TensorSpec]]) -> None:
        """shards: as `split_shards` gives them. Nothing is written. Raises Unsupported where two tensors have one name."""
        self.folder = folder
        self._shards = dict(zip(shard_names(len(shards)), shards, strict=True))
        self._places = dict(self._placed())
        if len(self._places) < sum(map(len, shards)):
            names = [spec.name for shard in shards for spec in shard]
            twice = next(name for name in names if names.count(name) > 1)
            msg = f"Two tensors of {folder.stem} would both be called {twice}. Leave the variant out for this model."
            raise Unsupported(msg)

    @property
    def names(self) -> set[str]:
        """Of all tensors."""
        return set(self._places)

    def is_laid_out(self) -> bool:
        """Whether the files are there, of this very layout."""
        return all(_is(self.folder / name, header(shard), shard_bytes(shard)) for name, shard in self._shards.items())

    def lay_out(self) -> None:
        """Make the folder anew, with files that have headers, their full size and nothing in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for name, shard in self._shards.items():
            with (self.folder / name).open("wb") as file:
                file.write(header(shard))
                file.truncate(shard_bytes(shard))

    def refuse_others(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raise Unsupported for tensors that the layout does not have, or has with another dtype or shape."""
        for name, tensor in tensors.items():
            found, place = TensorSpec.of(name, tensor), self._places.get(name)
            if place is None or place.spec != found:
                wanted = f"as {_words(place.spec)}" if place else "no such tensor"
                msg = (
                    f"{self.folder.stem} came to {name} as {_words(found)}, and its files were laid out for {wanted}. Leave the "
                    "variant out for this model, and report this: its plan is wrong."
                )
                raise Unsupported(msg)

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put tensors, wherever they lie, at their places. Raises as `refuse_others` does, before anything is written."""
        self.refuse_others(tensors)
        places = sorted((self._places[name] for name in tensors), key=lambda place: (place.file, place.offset))
        for file, group in groupby(places, key=lambda place: place.file):
            descriptor = os.open(self.folder / file, os.O_WRONLY)
            try:
                for place in group:
                    _write(descriptor, tensors[place.spec.name], place.offset)
            finally:
                os.close(descriptor)

    def _placed(self) -> Iterator[tuple[str, _Place]]:
        for file, shard in self._shards.items():
            offset = len(header(shard))
            for spec in shard:
                yield spec.name, _Place(file, offset, spec)
                offset += spec.size


def _is(path: Path, head: bytes, size: int) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return file.read(len(head)) == head


def _words(spec: TensorSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"


def _write(descriptor: int, tensor: torch.Tensor, offset: int) -> None:
    for piece in _bytes_of(tensor):
        view = piece.data
        while view:
            done = os.pwrite(descriptor, view, offset)
            view, offset = view[done:], offset + done


def _bytes_of(tensor: torch.Tensor) -> Iterator[npt.NDArray[np.uint8]]:
    """A tensor's elements as they lie in memory, piece by piece; each piece holds until the next is asked for."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if flat.is_cuda:
        yield from _through_pinned(flat)
    else:
        yield flat.numpy()


def _through_pinned(flat: torch.Tensor) -> Iterator[npt.NDArray[np.uint8]]:
    """Bytes on a card through pinned memory: a piece is on its way while the one before is used."""
    stream = torch.cuda.Stream(flat.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(flat.device))
    buffers = [torch.empty(min(_CHUNK, len(flat)), dtype=torch.uint8, pin_memory=True) for _ in range(2)]

    def fetched(index: int, piece: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return buffers[index % 2][: len(piece)].copy_(piece, non_blocking=True), stream.record_event()

    pieces = flat.split(_CHUNK)  # type: ignore[no-untyped-call]
    coming = fetched(0, pieces[0])
    for index in range(len(pieces)):
        here, copied = coming
        if index + 1 < len(pieces):
            coming = fetched(index + 1, pieces[index + 1])
        copied.synchronize()
        yield here.numpy()
