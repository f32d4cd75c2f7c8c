"""What lies where in safetensors shards, told from names, dtypes and shapes alone.

So a plan states file sizes exactly, and files are laid out before a weight is read (`hubbot.formats.store`). Layout as
safetensors' own writer has it: the header padded to 8 bytes with spaces, tensors by falling element size and then by
name, no gaps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

__all__ = [
    "TensorSpec",
    "header",
    "index_json",
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


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A stored tensor: its name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> TensorSpec:
        return cls(name, _TORCH[tensor.dtype], tuple(tensor.shape))

    @property
    def size(self) -> int:
        """Bytes of the tensor's elements."""
        size = _DTYPES[self.dtype].itemsize
        for extent in self.shape:
            size *= extent
        return size


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
    return len(header(shard)) + sum(spec.size for spec in shard)


def header(shard: Sequence[TensorSpec]) -> bytes:
    """What stands before the tensors of the file that holds these, in this order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
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


def index_json(shards: Sequence[Sequence[TensorSpec]]) -> str:
    """The text of model.safetensors.index.json."""
    names = shard_names(len(shards))
    where = {spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard}
    total = sum(spec.size for shard in shards for spec in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    return json.dumps(index, indent=2) + "\n"


def _natural_order(spec: TensorSpec) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", spec.name)]


def _file_order(spec: TensorSpec) -> tuple[int, str]:
    return -_RANK[spec.dtype], spec.name
