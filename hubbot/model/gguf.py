"""The header of a GGUF file made elsewhere, read strictly before llama.cpp or gguf-py touch it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
Counts and lengths in the file are believed only as far as the file is long; nothing is allocated by them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from hubbot.errors import SourceRefused, UnsafeSource
from hubbot.model.tokenizer import LARGEST_TEMPLATE

__all__ = ["BLOCKS", "GgufHeader", "GgufTensor", "read_gguf_header"]

_MOST_TENSORS = 100_000
_MOST_KEYS = 10_000
_MOST_ITEMS = 2**24  # of one array: tokens, scores, merges
_LONGEST_TEXT = 2**20  # bytes of one string
_LONGEST_NAME = 63  # bytes of a tensor's name, GGML_MAX_NAME - 1
_LARGEST_HEADER = 512 * 2**20
_KEPT_TEXT = 4_096  # longer strings are checked and left out of `metadata`

_KEY = re.compile(r"[A-Za-z0-9_.\-]{1,256}")

# value type -> struct format; 8 is a string, 9 an array
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _BOOL = 8, 9, 7

# ggml type -> values in a block, bytes of a block (ggml-common.h); a test compares it with gguf-py's table
BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18), 42: (64, 18),
}  # fmt: skip

# Numbers that a reader allocates by: end of the key -> greatest honest value.
_LIMITS = {
    ".block_count": 2_000, ".embedding_length": 2**20, ".feed_forward_length": 2**24, ".context_length": 2**31,
    ".attention.head_count": 2**16, ".attention.head_count_kv": 2**16, ".expert_count": 2**16, ".vocab_size": 2**24,
    "split.count": 2_000,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    kind: int  # ggml type
    shape: tuple[int, ...]  # ne[0] first, as in the file
    offset: int  # from the beginning of the file
    size: int  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    version: int
    metadata: Mapping[str, object]  # scalars and short strings; an array is its length
    tensors: Mapping[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Everything before the tensor data, checked.

    Raises UnsafeSource where the file breaks the format or its bounds, SourceRefused where it is truncated.
    """
    with path.open("rb") as file:
        reader = _Reader(file, path.name, path.stat().st_size)
        if reader.take(4) != b"GGUF":
            reader.refuse("does not begin with 'GGUF', so it is no GGUF file")
        version = reader.number("I")
        if version not in (2, 3):
            reader.refuse(f"has version {version}; little-endian files of version 2 and 3 are read")
        tensors, keys = reader.number("Q"), reader.number("Q")
        if tensors > _MOST_TENSORS or keys > _MOST_KEYS:
            reader.refuse(
                f"announces {tensors:,} tensors and {keys:,} keys; at most {_MOST_TENSORS:,} and {_MOST_KEYS:,} are read"
            )
        metadata: dict[str, object] = {}
        for _ in range(keys):
            _add_key(reader, metadata)
        found = _tensors(reader, tensors, _alignment(reader, metadata))
    return GgufHeader(version=version, metadata=metadata, tensors=found)


class _Reader:
    """Reads forwards and never past the end of the file or of the header's bound."""

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self._file, self._name, self.size = file, name, size

    @property
    def position(self) -> int:
        return self._file.tell()

    def take(self, count: int) -> bytes:
        self._check(count)
        return self._file.read(count)

    def skip(self, count: int) -> None:
        self._check(count)
        self._file.seek(count, 1)

    def number(self, form: str) -> int:
        (value,) = struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))
        return int(value)

    def text(self, longest: int, what: str) -> str:
        length = self.number("Q")
        if length > longest:
            self.refuse(f"holds {what} of {length:,} bytes; at most {longest:,} are read")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(f"holds {what} that is not UTF-8")

    def refuse(self, what: str) -> NoReturn:
        msg = f"{self._name} {what}."
        raise UnsafeSource(msg)

    def _check(self, count: int) -> None:
        end = self.position + count
        if end > _LARGEST_HEADER:
            self.refuse(f"has a header of more than {_LARGEST_HEADER:,} bytes")
        if end > self.size:
            msg = f"{self._name} is truncated: its header goes on after its {self.size:,} bytes. Fetch it again."
            raise SourceRefused(msg)


def _add_key(reader: _Reader, metadata: dict[str, object]) -> None:
    key = reader.text(_LONGEST_TEXT, "a key")
    if not _KEY.fullmatch(key):
        reader.refuse(f"has the key {ascii(key)[:80]}, which is no plain name")
    if key in metadata:
        reader.refuse(f"names the key {key} twice")
    value = _value(reader, key, reader.number("I"))
    limit = next((most for end, most in _LIMITS.items() if key.endswith(end)), None)
    if limit is not None and isinstance(value, int) and not 0 <= value <= limit:
        reader.refuse(f"says {key} = {value:,}; at most {limit:,} is believed")
    metadata[key] = value


def _value(reader: _Reader, key: str, kind: int) -> object:
    if kind == _STRING:
        template = key.startswith("tokenizer.chat_template")
        text = reader.text(LARGEST_TEMPLATE if template else _LONGEST_TEXT, key)
        return text if len(text) <= _KEPT_TEXT else ""
    if kind == _ARRAY:
        return _array(reader, key)
    return _scalar(reader, key, kind)


def _scalar(reader: _Reader, key: str, kind: int) -> object:
    if kind not in _SCALARS:
        reader.refuse(f"gives {key} the unknown type {kind}")
    raw = reader.take(struct.calcsize(f"<{_SCALARS[kind]}"))
    if kind == _BOOL and raw not in (b"\0", b"\1"):
        reader.refuse(f"gives {key} a boolean that is neither 0 nor 1")
    (value,) = struct.unpack(f"<{_SCALARS[kind]}", raw)
    return value


def _array(reader: _Reader, key: str) -> int:
    """Steps over an array; returns how many items it has."""
    kind, count = reader.number("I"), reader.number("Q")
    if count > _MOST_ITEMS:
        reader.refuse(f"announces {count:,} items of {key}; at most {_MOST_ITEMS:,} are read")
    if kind == _STRING:
        for _ in range(count):
            reader.text(_LONGEST_TEXT, f"an item of {key}")
    elif kind in _SCALARS:
        reader.skip(count * struct.calcsize(f"<{_SCALARS[kind]}"))
    else:
        reader.refuse(f"makes {key} an array of type {kind}; arrays of numbers and strings are read")
    return count


def _alignment(reader: _Reader, metadata: Mapping[str, object]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 2**16 or alignment & (alignment - 1):
        reader.refuse(f"has general.alignment {ascii(alignment)[:40]}; a power of two from 8 to 65,536 is needed")
    return alignment


def _tensors(reader: _Reader, count: int, alignment: int) -> dict[str, GgufTensor]:
    entries = [_entry(reader) for _ in range(count)]
    base = -(-reader.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    position = base
    for name, kind, shape, offset in sorted(entries, key=lambda entry: entry[3]):
        if name in tensors:
            reader.refuse(f"holds the tensor {name} twice")
        if base + offset != position:
            reader.refuse(
                f"puts {name} at {offset:,}; the aligned end of the tensor before it, {position - base:,}, is needed"
            )
        size = _size(reader, name, kind, shape)
        tensors[name] = GgufTensor(kind=kind, shape=shape, offset=position, size=size)
        if position + size > reader.size:
            msg = f"The data of {name} ends behind the end of the file: it is truncated. Fetch it again."
            raise SourceRefused(msg)
        position += -(-size // alignment) * alignment
    if reader.size > position:
        reader.refuse(f"carries {reader.size - position:,} bytes behind its last tensor")
    return tensors


def _entry(reader: _Reader) -> tuple[str, int, tuple[int, ...], int]:
    name = reader.text(_LONGEST_NAME, "a tensor's name")
    if not _KEY.fullmatch(name):
        reader.refuse(f"has a tensor named {ascii(name)[:80]}, which is no plain name")
    dimensions = reader.number("I")
    if not 1 <= dimensions <= 4:
        reader.refuse(f"gives {name} {dimensions:,} dimensions; 1 to 4 are possible")
    shape = tuple(reader.number("Q") for _ in range(dimensions))
    return name, reader.number("I"), shape, reader.number("Q")


def _size(reader: _Reader, name: str, kind: int, shape: tuple[int, ...]) -> int:
    if kind not in BLOCKS:
        reader.refuse(f"stores {name} as the unknown ggml type {kind}")
    values, size = BLOCKS[kind]
    count = 1
    for dimension in shape:
        count *= dimension
    if not 0 < count < 2**62 or shape[0] % values:
        reader.refuse(f"gives {name} the shape {shape}, which is empty, overflows or does not fill blocks of {values}")
    return count // values * size
