"""Refuses weights that are infinite or not a number, before any work is done on them, and finds the large ones.

Floats are looked at as integers: a value is not finite where every bit of its exponent is set, and without the
sign the larger integer is the larger number. Files are read in slices by a few threads, so memory stays at a few
slices and the disk stays busy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hubbot.errors import SourceRefused
from hubbot.model.safetensors import TensorInfo

__all__ = ["LARGEST_FLOAT16", "Large", "check_equal", "check_tensors"]

LARGEST_FLOAT16 = 65504.0
_SLICE = 8 * 2**20  # bytes
_THREADS = 4

Decoder = Callable[[str], npt.NDArray[np.uint8]]  # the bytes of a tensor that was released quantized, decoded

# dtype -> the integer of its width, its exponent's bits, and the first integer that is no number for its readers
_BITS: Mapping[str, tuple[type[np.unsignedinteger], int, int]] = {
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "F32": (np.uint32, 0x7FFF_FFFF, 0x7F80_0000),
    "F64": (np.uint64, 0x7FFF_FFFF_FFFF_FFFF, 0x47EF_FFFF_F000_0000),  # is read as float32: what rounds to infinity
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Large:
    """The largest magnitude of a tensor, where float16 cannot hold it."""

    value: float
    index: tuple[int, ...]


def check_tensors(folder: Path, tensors: Mapping[str, TensorInfo], decoder: Decoder) -> dict[str, Large]:
    """Read every floating-point weight of the checkpoint once; returns the tensors with values beyond float16.

    Raises SourceRefused naming the first tensor, in the order of the files, with a value that is no number.
    """
    work = [(name, info, first) for name, info in tensors.items() for first in _slices(info)]
    found: dict[str, Large] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            looked = pool.map(lambda item: _look(folder, decoder, *item), work)
            for (name, info, _), (value, position) in zip(work, looked, strict=True):
                if not np.isfinite(value):
                    raise SourceRefused(_found(name, info, position))
                if value > max(LARGEST_FLOAT16, found[name].value if name in found else 0.0):
                    found[name] = Large(value=value, index=_place(info, position))
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def check_equal(folder: Path, tensors: Mapping[str, TensorInfo], decoder: Decoder, first: str, second: str) -> None:
    """Raise SourceRefused where two tensors that stand for one parameter are not the same, number for number."""
    if not _same(folder, tensors, decoder, first, second):
        msg = (
            f"config.json ties the head to the embedding (tie_word_embeddings), and {first} and {second} are both stored and differ: "
            "transformers would take both, other runtimes one of them. Set tie_word_embeddings to false in a copy of "
            f"the model if {second} was trained, or remove the one that was not."
        )
        raise SourceRefused(msg)


def _same(folder: Path, tensors: Mapping[str, TensorInfo], decoder: Decoder, first: str, second: str) -> bool:
    one, other = tensors[first], tensors[second]
    if one.coded or other.coded:
        return one.coded is not None and other.coded is not None and np.array_equal(decoder(first), decoder(second))
    if one.stored == other.stored:
        return all(
            np.array_equal(_raw(folder, one, start), _raw(folder, other, start)) for start in range(0, one.size, _SLICE)
        )
    return {one.stored, other.stored} <= _FLOATS.keys() and all(
        np.array_equal(_numbers(folder, one, start), _numbers(folder, other, start))
        for start in range(0, one.count, _SLICE // 8)
    )


def _raw(folder: Path, info: TensorInfo, start: int) -> npt.NDArray[np.uint8]:
    return _read(folder / info.file, info.offset + start, min(_SLICE, info.size - start))


def _numbers(folder: Path, info: TensorInfo, first: int) -> npt.NDArray[np.float64]:
    """The elements from the one `first` on, as many as a slice has in float64."""
    width, count = info.size // info.count, min(_SLICE // 8, info.count - first)
    return _FLOATS[info.stored](_read(folder / info.file, info.offset + first * width, count * width))


# safetensors' name -> bytes as numbers in float64, which holds all of them
_FLOATS: dict[str, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float64]]] = {
    "BF16": lambda raw: (raw.view("<u2").astype("<u4") << 16).view("<f4").astype("<f8"),
    "F16": lambda raw: raw.view("<f2").astype("<f8"),
    "F32": lambda raw: raw.view("<f4").astype("<f8"),
    "F64": lambda raw: raw.view("<f8"),
}


def _slices(info: TensorInfo) -> Iterator[int]:
    """First byte of each slice of a tensor's data, relative to its beginning; a coded one is looked at whole, decoded."""
    if info.coded:
        return iter((0,) if info.count else ())
    return iter(range(0, info.size if info.stored in _BITS else 0, _SLICE))


def _look(folder: Path, decoder: Decoder, name: str, info: TensorInfo, first: int) -> tuple[float, int]:
    """The largest magnitude of a slice, or of a whole decoded tensor, or infinity, and its index in the flat tensor."""
    dtype = info.dtype if info.coded else info.stored
    kind, magnitude, infinite = _BITS[dtype]
    raw = decoder(name) if info.coded else _raw(folder, info, first)
    values = raw.view(kind) & kind(magnitude)
    if values.max() < infinite:
        position = int(np.argmax(values))
        return _number(values[position], dtype), first // values.itemsize + position
    return np.inf, first // values.itemsize + int(np.argmax(values >= infinite))


def _number(bits: np.unsignedinteger, dtype: str) -> float:
    """The positive float that an integer of a dtype's width stands for."""
    if dtype == "BF16":
        return float((np.uint32(bits) << np.uint32(16)).view(np.float32))
    return float(bits.view({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]))


def _read(path: Path, offset: int, size: int) -> npt.NDArray[np.uint8]:
    buffer = np.empty(size, np.uint8)
    with path.open("rb", buffering=0) as file:
        done = os.preadv(file.fileno(), [buffer.data], offset)
    if done != size:
        msg = f"{path.name} ended {size - done:,} bytes too early while it was read. Fetch it again."
        raise SourceRefused(msg)
    return buffer


def _found(name: str, info: TensorInfo, position: int) -> str:
    return (
        f"{name} in {info.file} holds a value at {list(_place(info, position))} that is infinite or not a number; finite weights are needed. "
        "The checkpoint is damaged or its training diverged: fetch it again, or ask the author."
    )


def _place(info: TensorInfo, position: int) -> tuple[int, ...]:
    return tuple(int(number) for number in np.unravel_index(position, info.shape)) if info.shape else ()
