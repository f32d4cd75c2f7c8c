"""ggml's blocks taken apart and put together again: scales, minimums and steps as whole numbers.

A row of these types is made of blocks, a block of groups: weight = d * scale * step - dmin * minimum, with d and dmin of
the block in float16, scale and minimum of the group and the step of the weight whole numbers of a few bits. Types with
one group a block have no whole scale (it is 1), and those without minimums none (it is 0). Where each bit lies is told by
`dequantize_row_*` in ggml's ggml-quants.c; `tests/formats/gguf/test_blocks.py` holds every type against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["LAYOUTS", "Blocks", "Layout"]

Bytes = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Rows of one type. d, dmin: float32 [rows, blocks]; scale, minimum: int16 [rows, groups]; steps: int16 [rows, columns]."""

    d: Floats
    dmin: Floats
    scale: Whole
    minimum: Whole
    steps: Whole

    @classmethod
    def together(cls, pieces: Sequence[Blocks]) -> Blocks:
        """Rows one below another."""
        return cls(**{one.name: np.concatenate([getattr(piece, one.name) for piece in pieces]) for one in fields(cls)})

    def split(self, count: int) -> list[Blocks]:
        """Rows in so many pieces."""
        parts = {one.name: np.array_split(getattr(self, one.name), count) for one in fields(self)}
        return [Blocks(**{name: pieces[number] for name, pieces in parts.items()}) for number in range(count)]


class _Numbers(NamedTuple):
    """Those of blocks, a block a row: d and dmin float16, the others any whole type."""

    d: npt.NDArray[np.float16]
    dmin: npt.NDArray[np.float16]
    scale: npt.NDArray[np.integer[Any]]
    minimum: npt.NDArray[np.integer[Any]]
    steps: npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What the whole numbers of a type may be, and where they lie in its bytes."""

    block: int  # columns
    group: int  # columns that share a scale
    steps: tuple[int, int]  # least and largest
    scales: tuple[int, int] = (1, 1)
    minimums: int = 0  # the largest
    bytes: int  # of a block
    split: Callable[[Bytes], _Numbers]  # of blocks [n, bytes]
    joined: Callable[[Bytes, _Numbers], None]  # fills such blocks

    def unpack(self, data: Bytes, rows: int) -> Blocks:
        """Encoded rows, uint8, taken apart."""
        found = self.split(data.reshape(-1, self.bytes))
        return Blocks(
            d=found.d.astype(np.float32).reshape(rows, -1),
            dmin=found.dmin.astype(np.float32).reshape(rows, -1),
            scale=found.scale.astype(np.int16).reshape(rows, -1),
            minimum=found.minimum.astype(np.int16).reshape(rows, -1),
            steps=found.steps.astype(np.int16).reshape(rows, -1),
        )

    def pack(self, found: Blocks) -> Bytes:
        """The bytes of whole rows, uint8 [rows * bytes of a row]."""
        count = found.d.size
        data = np.zeros((count, self.bytes), np.uint8)
        numbers = _Numbers(
            found.d.reshape(count, 1).astype(np.float16),
            found.dmin.reshape(count, 1).astype(np.float16),
            found.scale.reshape(count, -1),
            found.minimum.reshape(count, -1),
            found.steps.reshape(count, -1),
        )
        self.joined(data, numbers)
        return data.reshape(-1)


def _half(data: Bytes, start: int) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(data[:, start : start + 2]).view(np.float16)


def _put_half(data: Bytes, start: int, value: npt.NDArray[np.float16]) -> None:
    data[:, start : start + 2] = np.ascontiguousarray(value).view(np.uint8)


def _fields(data: Bytes, bits: int, run: int) -> Bytes:
    """Fields of `bits` bits: from each run of bytes first the lowest field of every byte, then the next. [n, fields]."""
    runs = data.reshape(len(data), -1, 1, run)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields: Bytes = ((runs >> shifts) & (2**bits - 1)).reshape(len(data), -1)
    return fields


def _from_fields(fields: npt.NDArray[np.integer[Any]], bits: int, run: int) -> Bytes:
    runs = fields.astype(np.uint8).reshape(len(fields), -1, 8 // bits, run)
    found = runs[:, :, 0].copy()
    for number in range(1, 8 // bits):
        found |= runs[:, :, number] << np.uint8(bits * number)
    return found.reshape(len(fields), -1)


# --- types of 32 columns: one float16 scale, some with a float16 offset ------------------------------------------------


def _plain(*, bits: int, offset: bool) -> Layout:
    """q4_0, q4_1, q5_0, q5_1: d, the offset, the fifth bits, the lower four."""
    high = 4 if offset else 2
    low = high + (4 if bits == 5 else 0)
    middle = 0 if offset else 2 ** (bits - 1)

    def split(data: Bytes) -> _Numbers:
        steps = _fields(data[:, low:], 4, 16).astype(np.int16)
        if bits == 5:
            steps |= np.unpackbits(data[:, high:low], axis=1, bitorder="little").astype(np.int16) << 4
        ones = np.ones((len(data), 1), np.int16)
        dmin = -_half(data, 2) if offset else np.zeros((len(data), 1), np.float16)
        return _Numbers(_half(data, 0), dmin, ones, ones * offset, steps - middle)

    def joined(data: Bytes, of: _Numbers) -> None:
        _put_half(data, 0, of.d)
        if offset:
            _put_half(data, 2, -of.dmin)
        codes = of.steps + middle
        data[:, low:] = _from_fields(codes & 15, 4, 16)
        if bits == 5:
            data[:, high:low] = np.packbits((codes >> 4).astype(np.uint8), axis=1, bitorder="little")

    return Layout(
        block=32,
        group=32,
        steps=(-middle, 2**bits - 1 - middle),
        minimums=int(offset),
        bytes=low + 16,
        split=split,
        joined=joined,
    )


def _q8_0() -> Layout:
    def split(data: Bytes) -> _Numbers:
        ones = np.ones((len(data), 1), np.int16)
        steps = np.ascontiguousarray(data[:, 2:]).view(np.int8)
        return _Numbers(_half(data, 0), np.zeros((len(data), 1), np.float16), ones, 0 * ones, steps)

    def joined(data: Bytes, of: _Numbers) -> None:
        _put_half(data, 0, of.d)
        data[:, 2:] = of.steps.astype(np.int8).view(np.uint8)

    # -128 is left out, as ggml leaves it out: kernels that take absolute values of int8 have none for it
    return Layout(block=32, group=32, steps=(-127, 127), bytes=34, split=split, joined=joined)


# --- types of 256 columns: whole scales below a float16 -----------------------------------------------------------------


def _q2_k() -> Layout:
    def split(data: Bytes) -> _Numbers:
        both = data[:, :16].astype(np.int16)
        return _Numbers(_half(data, 80), _half(data, 82), both & 15, both >> 4, _fields(data[:, 16:80], 2, 32))

    def joined(data: Bytes, of: _Numbers) -> None:
        data[:, :16] = of.scale | of.minimum << 4
        data[:, 16:80] = _from_fields(of.steps, 2, 32)
        _put_half(data, 80, of.d)
        _put_half(data, 82, of.dmin)

    return Layout(block=256, group=16, steps=(0, 3), scales=(0, 15), minimums=15, bytes=84, split=split, joined=joined)


def _q3_k() -> Layout:
    def split(data: Bytes) -> _Numbers:
        steps = _fields(data[:, 32:96], 2, 32).astype(np.int16) | _fields(data[:, :32], 1, 32).astype(np.int16) << 2
        low = _fields(data[:, 96:104], 4, 8).astype(np.int16)
        scale = (low | _fields(data[:, 104:108], 2, 4).astype(np.int16) << 4) - 32
        return _Numbers(_half(data, 108), np.zeros((len(data), 1), np.float16), scale, 0 * scale, steps - 4)

    def joined(data: Bytes, of: _Numbers) -> None:
        codes, scales = of.steps + 4, of.scale + 32
        data[:, :32] = _from_fields(codes >> 2, 1, 32)
        data[:, 32:96] = _from_fields(codes & 3, 2, 32)
        data[:, 96:104] = _from_fields(scales & 15, 4, 8)
        data[:, 104:108] = _from_fields(scales >> 4, 2, 4)
        _put_half(data, 108, of.d)

    return Layout(block=256, group=16, steps=(-4, 3), scales=(-32, 31), bytes=110, split=split, joined=joined)


def _scales_and_minimums(data: Bytes) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """The twelve bytes of q4_K and q5_K: eight scales and eight minimums of six bits."""
    first, second, third = (data[:, start : start + 4].astype(np.int16) for start in (0, 4, 8))
    scale = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=1)
    minimum = np.concatenate([second & 63, third >> 4 | (second >> 6) << 4], axis=1)
    return scale, minimum


def _put_scales_and_minimums(
    data: Bytes, scale: npt.NDArray[np.integer[Any]], minimum: npt.NDArray[np.integer[Any]]
) -> None:
    data[:, 0:4] = scale[:, :4] | scale[:, 4:] >> 4 << 6
    data[:, 4:8] = minimum[:, :4] | minimum[:, 4:] >> 4 << 6
    data[:, 8:12] = (scale[:, 4:] & 15) | (minimum[:, 4:] & 15) << 4


def _q4_or_q5_k(bits: int) -> Layout:
    low = 16 if bits == 4 else 48

    def split(data: Bytes) -> _Numbers:
        steps = _fields(data[:, low:], 4, 32).astype(np.int16)
        if bits == 5:
            steps |= _fields(data[:, 16:48], 1, 32).astype(np.int16) << 4
        scale, minimum = _scales_and_minimums(data[:, 4:16])
        return _Numbers(_half(data, 0), _half(data, 2), scale, minimum, steps)

    def joined(data: Bytes, of: _Numbers) -> None:
        _put_half(data, 0, of.d)
        _put_half(data, 2, of.dmin)
        _put_scales_and_minimums(data[:, 4:16], of.scale, of.minimum)
        data[:, low:] = _from_fields(of.steps & 15, 4, 32)
        if bits == 5:
            data[:, 16:48] = _from_fields(of.steps >> 4, 1, 32)

    return Layout(
        block=256,
        group=32,
        steps=(0, 2**bits - 1),
        scales=(0, 63),
        minimums=63,
        bytes=low + 128,
        split=split,
        joined=joined,
    )


def _q6_k() -> Layout:
    def split(data: Bytes) -> _Numbers:
        low = _fields(data[:, :128], 4, 64).astype(np.int16)
        steps = low | _fields(data[:, 128:192], 2, 32).astype(np.int16) << 4
        scale = np.ascontiguousarray(data[:, 192:208]).view(np.int8).astype(np.int16)
        return _Numbers(_half(data, 208), np.zeros((len(data), 1), np.float16), scale, 0 * scale, steps - 32)

    def joined(data: Bytes, of: _Numbers) -> None:
        codes = of.steps + 32
        data[:, :128] = _from_fields(codes & 15, 4, 64)
        data[:, 128:192] = _from_fields(codes >> 4, 2, 32)
        data[:, 192:208] = of.scale.astype(np.int8).view(np.uint8)
        _put_half(data, 208, of.d)

    return Layout(block=256, group=16, steps=(-32, 31), scales=(-128, 127), bytes=210, split=split, joined=joined)


# By ggml's type number.
LAYOUTS: Mapping[int, Layout] = {
    2: _plain(bits=4, offset=False),
    3: _plain(bits=4, offset=True),
    6: _plain(bits=5, offset=False),
    7: _plain(bits=5, offset=True),
    8: _q8_0(),
    10: _q2_k(),
    11: _q3_k(),
    12: _q4_or_q5_k(4),
    13: _q4_or_q5_k(5),
    14: _q6_k(),
}
