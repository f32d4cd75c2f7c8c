"""ggml's own encoder and decoder, row by row, through ctypes.

Types are ggml's type numbers (`enum ggml_type`, the same as gguf.GGMLQuantizationType). Arrays are
C-contiguous numpy; a row's bytes depend on that row and the importance vector alone. Calls release
the interpreter lock, so threads may encode different rows at the same time.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from hubbot import llamacpp
from hubbot.formats.gguf.fast import encoder

__all__ = [
    "BF16",
    "F16",
    "F32",
    "MXFP4",
    "SOURCE_NOT_FINITE",
    "beyond",
    "decode_rows",
    "encode_rows",
    "encoded",
    "prepare",
    "requires_importance",
    "row_bytes",
    "type_name",
]

F32, F16, BF16, MXFP4 = 0, 1, 30, 39
SOURCE_NOT_FINITE = "the source holds weights that are not finite"
# Types that ggml encodes by searching a grid, iq2_xxs to iq1_m. Where the squares of a search pass float32's range,
# no point is nearest and ggml ends the process. These bounds keep sums over 32 weights below that range.
_IN_GRIDS = frozenset((16, 17, 18, 19, 21, 22, 29))
_REACH = 1e5  # of a weight
_WEIGHED_REACH = 1e15  # of importance times a weight's square

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@cache
def type_name(kind: int) -> str:
    """ggml's name of a type, as its logs write it: `q4_K`, `iq4_xs`, `bf16`."""
    name: bytes = llamacpp.ggml().ggml_type_name(kind)
    return name.decode()


@cache
def type_named(name: str) -> int:
    """The number of the type that ggml's logs call `name`. Raises KeyError."""
    for member in llamacpp.gguf().GGMLQuantizationType:
        if type_name(int(member)) == name:
            return int(member)
    raise KeyError(name)


@cache
def row_bytes(kind: int, columns: int) -> int:
    """Bytes of one row of `columns` weights."""
    if columns % llamacpp.ggml().ggml_blck_size(kind):
        msg = f"a row of {columns} weights is no whole number of {type_name(kind)} blocks"
        raise ValueError(msg)
    return int(llamacpp.ggml().ggml_row_size(kind, columns))


@cache
def prepare(kind: int) -> None:
    """Build the type's lookup tables (the iq types have some) and choose its encoder; once, before threads encode."""
    llamacpp.ggml().ggml_quantize_init(kind)
    encoder(kind)


def requires_importance(kind: int) -> bool:
    """Whether ggml's encoder of this type aborts without an importance vector."""
    return bool(llamacpp.ggml().ggml_quantize_requires_imatrix(kind))


def encode_rows(kind: int, rows: Floats, out: Bytes, importance: Floats | None = None) -> None:
    """Encode rows as llama-quantize does.

    rows: float32 [n, columns]; out: uint8 with n * row_bytes(kind, columns) elements;
    importance: float32 [columns], the mean square of each input feature, or None.
    Raises ValueError where the result is not finite, as llama-quantize refuses it too, and for weights so large
    that ggml would end the process.
    """
    if kind in _IN_GRIDS:
        _require_reach(kind, rows, importance)
    library = llamacpp.ggml()
    count, columns = rows.shape
    vector = None if importance is None else importance.ctypes.data
    fast = encoder(kind)
    if fast:
        written = fast(rows.ctypes.data, out.ctypes.data, count, columns, vector)
    else:
        written = library.ggml_quantize_chunk(kind, rows.ctypes.data, out.ctypes.data, 0, count, columns, vector)
    if not library.ggml_validate_row_data(kind, out.ctypes.data, written):
        msg = f"encoding to {type_name(kind)} gave values that are not finite"
        raise ValueError(msg)


def encoded(kind: int, rows: Floats, importance: Floats | None = None) -> Bytes:
    """The bytes of rows, as `encode_rows` writes them."""
    data = np.empty(len(rows) * row_bytes(kind, rows.shape[1]), np.uint8)
    encode_rows(kind, rows, data, importance)
    return data


def _require_reach(kind: int, rows: Floats, importance: Floats | None) -> None:
    largest = float(np.abs(rows).max(initial=0))
    heaviest = 0.0 if importance is None else float(importance.max(initial=0))
    if largest > _REACH or heaviest * largest**2 > _WEIGHED_REACH:
        raise ValueError(beyond(kind))


def beyond(kind: int) -> str:
    """What is said of weights that a type's search cannot weigh."""
    return f"its weights are so large that ggml finds no {type_name(kind)} for them; take a type other than IQ1 to IQ3"


def require_finite(kind: int, data: Bytes) -> None:
    """Raise ValueError where floats of a source are NaN or infinite. data: uint8, C-contiguous."""
    if not llamacpp.ggml().ggml_validate_row_data(kind, data.ctypes.data, data.size):
        raise ValueError(SOURCE_NOT_FINITE)


def decode_rows(kind: int, data: Bytes, out: Floats) -> None:
    """Decode what encode_rows wrote: uint8 [n * row bytes] -> float32 [n, columns], by ggml's own to_float."""
    if kind == F32:
        out.reshape(-1)[:] = data.view(np.float32)
        return
    traits = llamacpp.ggml().ggml_get_type_traits(kind).contents
    traits.to_float(data.ctypes.data, out.ctypes.data, out.size)
