"""Where everything lies in a GGUF file, known before any weight is read.

A file is: magic, version, counts; key-value pairs; tensor infos; tensor data, each aligned to 32
bytes. Files above a size limit are split as llama.cpp's gguf-split does it: all keys in the first
shard, `split.*` keys in every one. The first may hold no tensor; then no other byte hangs on the keys.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hubbot import llamacpp
from hubbot.formats.gguf.codec import row_bytes
from hubbot.formats.gguf.converter import Captured

__all__ = ["ALIGNMENT", "Placed", "Shard", "lay_out"]

ALIGNMENT = 32
_LONG = 1_000  # items; shorter lists are gguf-py's to pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A tensor at its place."""

    tensor: Captured
    kind: int  # ggml type in this file
    offset: int  # bytes from the start of the file

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.kind, self.tensor.columns)

    @property
    def bytes(self) -> int:
        return self.tensor.rows * self.row_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file: everything before the tensor data, and where each tensor goes."""

    header: bytes
    infos: int  # where in the header the tensor infos begin: what comes before moves no weight
    tensors: tuple[Placed, ...]
    bytes: int  # of the whole file


def lay_out(
    tensors: Sequence[tuple[Captured, int]],
    metadata: Mapping[str, Any],
    architecture: str,
    shard_size: int | None = None,
    *,
    keys_alone: bool = False,
) -> tuple[Shard, ...]:
    """Lay out a model. tensors: (tensor, ggml type) in file order; metadata: key -> GGUFValue, in file order.

    keys_alone: put no tensor into the first shard.
    """
    groups = [*([[]] if keys_alone else []), *_groups(tensors, shard_size)]
    if len(groups) == 1:
        return (_shard(groups[0], metadata, architecture),)
    shards = []
    for number, group in enumerate(groups):
        keys = {**(metadata if number == 0 else {}), **_split_keys(number, len(groups), len(tensors))}
        shards.append(_shard(group, keys, architecture))
    return tuple(shards)


def _groups(tensors: Sequence[tuple[Captured, int]], shard_size: int | None) -> list[list[tuple[Captured, int]]]:
    groups: list[list[tuple[Captured, int]]] = [[]]
    filled = 0
    for tensor, kind in tensors:
        size = _padded(tensor.rows * row_bytes(kind, tensor.columns))
        if shard_size and groups[-1] and filled + size > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append((tensor, kind))
        filled += size
    return groups


def _split_keys(number: int, count: int, tensors: int) -> dict[str, Any]:
    from gguf.gguf_writer import GGUFValue, GGUFValueType

    return {
        "split.no": GGUFValue(number, GGUFValueType.UINT16),
        "split.tensors.count": GGUFValue(tensors, GGUFValueType.INT32),
        "split.count": GGUFValue(count, GGUFValueType.UINT16),
    }


def _shard(tensors: Iterable[tuple[Captured, int]], metadata: Mapping[str, Any], architecture: str) -> Shard:
    listed = list(tensors)
    header, infos = _header(listed, metadata, architecture)
    placed = []
    offset = len(header)
    for tensor, kind in listed:
        at = Placed(tensor=tensor, kind=kind, offset=offset)
        placed.append(at)
        offset += _padded(at.bytes)
    return Shard(header=header, infos=infos, tensors=tuple(placed), bytes=offset)


def _header(tensors: list[tuple[Captured, int]], metadata: Mapping[str, Any], architecture: str) -> tuple[bytes, int]:
    """Everything before the tensor data, written by gguf-py and padded to the alignment; where the tensor infos begin."""
    gguf = llamacpp.gguf()
    writer = _writer()(None, architecture)
    writer.kv_data = [dict(metadata)]
    for tensor, kind in tensors:
        size = tensor.rows * row_bytes(kind, tensor.columns)
        writer.add_tensor_info(
            tensor.name, _told(tensor.shape), np.dtype(np.float32), size, raw_dtype=gguf.GGMLQuantizationType(kind)
        )
    with tempfile.TemporaryDirectory(prefix="hubbot-gguf-") as folder:
        path = Path(folder) / "header.gguf"
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        infos = path.stat().st_size
        writer.write_ti_data_to_file()
        writer.close()
        header = path.read_bytes()
    return header + bytes(_padded(len(header)) - len(header)), infos


@cache
def _writer() -> Any:
    """gguf-py's, but a tokenizer's long lists are packed at once, and once for all the headers that they stand in."""
    gguf = llamacpp.gguf()
    packed: dict[int, tuple[list[Any], bytes]] = {}  # id of a list -> the list, which keeps the id its own; its bytes

    class Writer(gguf.GGUFWriter):  # type: ignore[misc, name-defined]
        def _pack_val(self, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
            if not isinstance(val, list) or len(val) < _LONG or sub_type is not None:
                return bytes(super()._pack_val(val, vtype, add_vtype, sub_type))
            if id(val) not in packed:
                head = struct.pack("<IIQ", vtype, gguf.GGUFValueType.get_type(val[0]), len(val))
                body = _packed(val)
                whole = super()._pack_val(val, vtype, add_vtype) if body is None else head + body
                packed[id(val)] = val, bytes(whole)
            return packed[id(val)][1]

    return Writer


def _packed(items: Sequence[Any]) -> bytes | None:
    """Texts or numbers of one type as gguf-py packs them one by one; None for anything else."""
    kinds = {type(item) for item in items}
    if kinds <= {str, bytes}:
        texts = [item.encode() if isinstance(item, str) else item for item in items]
        lengths = struct.pack(f"<{len(texts)}Q", *map(len, texts))
        heads = (lengths[at : at + 8] for at in range(0, len(lengths), 8))
        return b"".join(chain.from_iterable(zip(heads, texts, strict=True)))
    for number, letter in ((int, "i"), (float, "f")):
        if bool not in kinds and all(issubclass(kind, number) for kind in kinds):
            return struct.pack(f"<{len(items)}{letter}", *items)
    return None


def _told(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape as llama-quantize writes it: ggml counts no outer dimension of one."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
