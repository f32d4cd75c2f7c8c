"""The header of a safetensors file, parsed strictly and within bounds before any other reader sees it.

The format (https://github.com/huggingface/safetensors): 8 bytes of little-endian length N, N bytes of
JSON {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {str: str}}, then the data. The
data of all tensors must follow each other from byte 0 to the end of the file, without hole or overlap.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubbot.errors import SourceRefused, UnsafeSource
from hubbot.model.strict_json import parse_object

__all__ = ["DTYPE_BITS", "Coded", "TensorInfo", "read_header"]

LARGEST_HEADER = 100_000_000  # bytes, the format's own limit
MOST_TENSORS = 100_000  # in one file; the largest checkpoints have 92,000 in all
MOST_DIMENSIONS = 8
LARGEST_DIMENSION = 2**48

DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,300}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor of a checkpoint, as its file's header describes it."""

    dtype: str  # that it is read as, in safetensors' names: "BF16"; float64 is rounded to "F32" by every reader
    stored: str = ""  # dtype in the file; not given: `dtype`
    shape: tuple[int, ...]
    file: str  # name of the file in the snapshot's folder
    offset: int = 0  # of the data's first byte in the file
    size: int = 0  # bytes in the file
    coded: Coded | None = None  # what it takes to decode it; None: its values are those that are stored

    def __post_init__(self) -> None:
        object.__setattr__(self, "stored", self.stored or self.dtype)
        object.__setattr__(self, "dtype", "F32" if self.stored == "F64" else self.dtype)

    @property
    def count(self) -> int:
        """Number of elements."""
        product = 1
        for dimension in self.shape:
            product *= dimension
        return product

    @property
    def read_size(self) -> int:
        """Bytes as it is read, decoded."""
        return self.count * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """How a weight that was released quantized is decoded: value = code * scale of its block.

    codes and scale: names in the checkpoint. block: how many weights of each of the last dimensions share a scale;
    empty for MXFP4, whose codes are packed.
    """

    codes: str
    scale: str
    scales: TensorInfo
    block: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensors of a safetensors file by name, in the order of their data.

    Reads the header alone; the file may be a sparse one whose data was never downloaded.
    Raises UnsafeSource where the file breaks the format, SourceRefused where it is truncated.
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            msg = f"{path.name} is truncated: {total} bytes are too few for a safetensors file. Fetch it again."
            raise SourceRefused(msg)
        (length,) = struct.unpack("<Q", start)
        if length > LARGEST_HEADER:
            msg = f"{path.name} announces a header of {length:,} bytes; the format allows {LARGEST_HEADER:,}. It is no safetensors file or a hostile one."
            raise UnsafeSource(msg)
        if length > total - 8:
            msg = f"{path.name} is truncated: its header needs {length:,} bytes and the file ends after {total - 8:,}. Fetch it again."
            raise SourceRefused(msg)
        header = file.read(length)
    return _tensors(header, path.name, data_size=total - 8 - length)


def _tensors(header: bytes, file: str, *, data_size: int) -> dict[str, TensorInfo]:
    if not header.startswith(b"{"):
        msg = f"The header of {file} does not begin with '{{', as the safetensors format demands."
        raise UnsafeSource(msg)
    # A tensor brings two brackets and at most 5 + its dimensions commas; __metadata__ brings a few.
    entries = parse_object(header, name=f"The header of {file}", most_values=20 * MOST_TENSORS)
    _check_metadata(entries.pop("__metadata__", {}), file)
    if len(entries) > MOST_TENSORS:
        msg = f"{file} holds {len(entries):,} tensors; at most {MOST_TENSORS:,} are read from one file."
        raise UnsafeSource(msg)
    base = 8 + len(header)
    spans = [(*_span(name, entry, file), name) for name, entry in entries.items()]
    tensors = {}
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else "leaves a hole before it"
            msg = f"{file}: the data of {name} {what} (begins at {begin}, needed {position}). The format forbids it."
            raise UnsafeSource(msg)
        entry = entries[name]
        tensors[name] = TensorInfo(
            dtype=entry["dtype"], shape=tuple(entry["shape"]), file=file, offset=base + begin, size=end - begin
        )
        position = end
    _check_end(position, data_size, file)
    return tensors


def _span(name: str, entry: Any, file: str) -> tuple[int, int]:
    """First and last byte of a tensor's data; raises where the entry contradicts itself."""

    def refuse(what: str) -> UnsafeSource:
        return UnsafeSource(f"{file}: tensor {name[:100]!r} {what}. The safetensors format forbids it.")

    if not _NAME.fullmatch(name):
        raise refuse("has a name with other characters than letters, digits, '_', '.' and '-', or a very long one")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse("is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise refuse(f"has the unknown dtype {str(dtype)[:40]!r}")
    if not _naturals(shape) or len(shape) > MOST_DIMENSIONS:
        raise refuse(f"has a shape that is no list of at most {MOST_DIMENSIONS} whole numbers from 0 to 2^48")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse("has data_offsets that are no pair of a begin and a later end")
    bits = DTYPE_BITS[dtype]
    for dimension in shape:
        bits *= dimension
    if bits >= 2**66:
        raise refuse("has a shape whose size in bytes overflows 63 bits")
    begin, end = offsets
    if 8 * (end - begin) != bits:
        raise refuse(f"has {end - begin:,} bytes of data where its shape and dtype need {bits / 8:,.0f}")
    return begin, end


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number <= LARGEST_DIMENSION for number in value)


def _check_metadata(metadata: Any, file: str) -> None:
    if not isinstance(metadata, Mapping) or not all(isinstance(value, str) for value in metadata.values()):
        msg = f"{file}: __metadata__ must map strings to strings."
        raise UnsafeSource(msg)


def _check_end(described: int, found: int, file: str) -> None:
    if described > found:
        msg = f"{file} is truncated: its tensors need {described:,} bytes of data and {found:,} are there. Fetch it again."
        raise SourceRefused(msg)
    if described < found:
        msg = f"{file} carries {found - described:,} bytes behind its last tensor. The safetensors format forbids it."
        raise UnsafeSource(msg)
