"""Safetensors shards written by streaming: tensors of many part files become a few published files.

Nothing but the copy buffer is held in memory, and every size is known before a byte is written, so
that a plan can state file sizes exactly. Layout as safetensors' own writer has it: the header padded
to 8 bytes with spaces, tensors by falling element size and then by name, no gaps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = [
    "TensorSpec",
    "index_json",
    "pack_shards",
    "read_metadata",
    "read_specs",
    "save_part",
    "shard_bytes",
    "shard_names",
    "split_shards",
]

# safetensors' names of the dtypes that checkpoints hold, in the order that it writes tensors in, from last to first
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32,
    "U32": torch.uint32, "F32": torch.float32, "C64": torch.complex64, "F64": torch.float64, "I64": torch.int64,
    "U64": torch.uint64,
}  # fmt: skip
_TORCH = {dtype: name for name, dtype in _DTYPES.items()}
_RANK = {name: rank for rank, name in enumerate(_DTYPES)}
_COPY_CHUNK = 16 * 2**20  # bytes


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A stored tensor: its name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the tensor's elements."""
        size = _DTYPES[self.dtype].itemsize
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True, slots=True)
class _Place:
    file: Path
    offset: int  # of the first element, from the file's beginning


def save_part(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write one part's tensors, wherever they lie, to `path`, whole or not at all. Same tensors, same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    specs = [TensorSpec(name, _TORCH[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]
    specs.sort(key=_file_order)
    with unfinished.open("wb") as out:
        out.write(_header(specs, metadata))
        for spec in specs:
            for chunk in _bytes_of(tensors[spec.name]):
                out.write(chunk.data)
    unfinished.replace(path)


def read_metadata(path: Path) -> dict[str, str]:
    """What save_part was given besides tensors."""
    found: dict[str, str] = _header_of(path)[0].get("__metadata__", {})
    return found


def read_specs(path: Path) -> list[TensorSpec]:
    """The tensors of a file."""
    header = _header_of(path)[0]
    return [
        TensorSpec(name, entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    ]


def split_shards(specs: Iterable[TensorSpec], limit: int) -> list[list[TensorSpec]]:
    """Tensors by name, numbers by value, cut before the one that would pass `limit` bytes of a shard."""
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in sorted(specs, key=_natural_order):
        if shards[-1] and filled + spec.size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.size
    return [sorted(shard, key=_file_order) for shard in shards]


def shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]


def shard_bytes(shard: Sequence[TensorSpec]) -> int:
    """Size of the file that holds these tensors."""
    return len(_header(shard)) + sum(spec.size for spec in shard)


def index_json(shards: Sequence[Sequence[TensorSpec]]) -> str:
    """The text of model.safetensors.index.json."""
    names = shard_names(len(shards))
    where = {spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard}
    total = sum(spec.size for shard in shards for spec in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    return json.dumps(index, indent=2) + "\n"


def pack_shards(parts: Sequence[Path], folder: Path, limit: int) -> list[TensorSpec]:
    """Merge part files into the shards of `folder`, with an index where there are several.

    Returns the tensors written.
    """
    places: dict[str, _Place] = {}
    specs: list[TensorSpec] = []
    for part in parts:
        header, start = _header_of(part)
        for spec in read_specs(part):
            specs.append(spec)
            places[spec.name] = _Place(part, start + header[spec.name]["data_offsets"][0])
    shards = split_shards(specs, limit)
    for name, shard in zip(shard_names(len(shards)), shards, strict=True):
        _write_shard(folder / name, shard, places)
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(index_json(shards), encoding="utf-8")
    return specs


def _write_shard(path: Path, shard: Sequence[TensorSpec], places: dict[str, _Place]) -> None:
    with path.open("wb") as out:
        out.write(_header(shard))
        for spec in shard:
            place = places[spec.name]
            with place.file.open("rb") as source:
                source.seek(place.offset)
                left = spec.size
                while left:
                    chunk = source.read(min(left, _COPY_CHUNK))
                    if not chunk:
                        msg = f"{place.file} ends before {spec.name} does. Delete it and run again: the part is made anew."
                        raise EOFError(msg)
                    out.write(chunk)
                    left -= len(chunk)


def _natural_order(spec: TensorSpec) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", spec.name)]


def _file_order(spec: TensorSpec) -> tuple[int, str]:
    return -_RANK[spec.dtype], spec.name


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
    buffers = [torch.empty(min(_COPY_CHUNK, len(flat)), dtype=torch.uint8, pin_memory=True) for _ in range(2)]

    def fetched(index: int, piece: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            return buffers[index % 2][: len(piece)].copy_(piece, non_blocking=True), stream.record_event()

    pieces = flat.split(_COPY_CHUNK)  # type: ignore[no-untyped-call]
    coming = fetched(0, pieces[0])
    for index in range(len(pieces)):
        here, copied = coming
        if index + 1 < len(pieces):
            coming = fetched(index + 1, pieces[index + 1])
        copied.synchronize()
        yield here.numpy()


def _header(shard: Sequence[TensorSpec], metadata: Mapping[str, str] = MappingProxyType({"format": "pt"})) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for spec in shard:
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.size],
        }
        offset += spec.size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _header_of(path: Path) -> tuple[dict[str, Any], int]:
    """A file's parsed header and where its data begins."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length
