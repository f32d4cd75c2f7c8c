"""Refuses weights that are infinite or not a number, before any work is done on them.

Floats are looked at as integers: a value is not finite where every bit of its exponent is set. Files
are read in slices by a few threads, so memory stays at a few slices and the disk stays busy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hubbot.errors import SourceRefused
from hubbot.model.safetensors import TensorInfo

__all__ = ["check_tensors"]

_SLICE = 8 * 2**20  # bytes
_THREADS = 4

# dtype -> the integer of its width, and its exponent's bits
_EXPONENT: Mapping[str, tuple[type[np.unsignedinteger], int]] = {
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F80_0000),
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
}


def check_tensors(folder: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Read every floating-point weight of the checkpoint once.

    Raises SourceRefused naming the first tensor, in the order of the files, with such a value.
    """
    work = [(name, info, first) for name, info in tensors.items() for first in _slices(info)]
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for (name, info, _), position in zip(
                work, pool.map(lambda item: _look(folder, *item[1:]), work), strict=True
            ):
                if position is not None:
                    raise SourceRefused(_found(name, info, position))
        finally:
            pool.shutdown(cancel_futures=True)


def _slices(info: TensorInfo) -> Iterator[int]:
    """First byte of each slice of a tensor's data, relative to its beginning."""
    return iter(range(0, info.size if info.dtype in _EXPONENT else 0, _SLICE))


def _look(folder: Path, info: TensorInfo, first: int) -> int | None:
    """Index in the flat tensor of the first value of a slice that is not finite."""
    kind, exponent = _EXPONENT[info.dtype]
    values = _read(folder / info.file, info.offset + first, min(_SLICE, info.size - first)).view(kind)
    masked = values & kind(exponent)
    if masked.max() != exponent:
        return None
    return first // values.itemsize + int(np.argmax(masked == exponent))


def _read(path: Path, offset: int, size: int) -> npt.NDArray[np.uint8]:
    buffer = np.empty(size, np.uint8)
    with path.open("rb", buffering=0) as file:
        done = os.preadv(file.fileno(), [buffer.data], offset)
    if done != size:
        msg = f"{path.name} ended {size - done:,} bytes too early while it was read. Fetch it again."
        raise SourceRefused(msg)
    return buffer


def _found(name: str, info: TensorInfo, position: int) -> str:
    index = tuple(int(number) for number in np.unravel_index(position, info.shape)) if info.shape else ()
    return (
        f"{name} in {info.file} holds a value at {list(index)} that is infinite or not a number; finite weights are needed. "
        "The checkpoint is damaged or its training diverged: fetch it again, or ask the author."
    )
