"""ggml's slow encoders, built again with vectorised searches (search.h): the same bytes, several times sooner.

    python -m hubbot.formats.gguf.fast        build the library beside llama.cpp's, as `hubbot setup` does

The library is llama.cpp's own ggml-quants.c of the pinned tree with the searches in its loops replaced.
Where it is absent, the CPU too old or the bytes differ from ggml's on a sample, ggml's own encoders are used.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hubbot import llamacpp
from hubbot.environment import plain_encoders
from hubbot.errors import ToolMissing
from hubbot.formats.gguf import compiled

__all__ = ["build", "encoder"]

# ggml type -> function of ggml-quants.h, all `size_t f(const float *, void *, int64 rows, int64 columns, const float *)`
_ENCODERS = {
    2: "quantize_q4_0", 3: "quantize_q4_1", 6: "quantize_q5_0", 7: "quantize_q5_1", 10: "quantize_q2_K",
    11: "quantize_q3_K", 12: "quantize_q4_K", 13: "quantize_q5_K", 14: "quantize_q6_K",
    20: "quantize_iq4_nl", 23: "quantize_iq4_xs",
}  # fmt: skip

_REPLACED = ("make_qx_quants", "make_qkx2_quants", "make_qkx3_quants", "quantize_row_iq4_nl_impl")
_HALF = "static uint16_t half_of(float value) { return GGML_FP32_TO_FP16(value); }\n"
# Contraction off: ggml-base is built without fused multiply-add on x86, and the bytes must not change.
_FLAGS = ("-ffp-contract=off", "-DNDEBUG", "-w", "-Wl,-Bsymbolic")


def build() -> None:
    """Compile the library into llama.cpp's build folder, unless it is there. Raises ToolMissing where that fails."""
    if compiled.place("encoders").is_file():
        return
    here = llamacpp.find()
    ggml = here.source / "ggml"
    text = (ggml / "src" / "ggml-quants.c").read_text(encoding="utf-8")
    for name in _REPLACED:
        text, count = re.subn(rf"^(static \w+ ){name}\(", rf"\1{name}_plain(", text, flags=re.MULTILINE)
        if count != 1:
            msg = f"llama.cpp's ggml-quants.c defines {name} {count} times, not once; search.h fits another version of it."
            raise ToolMissing(msg)
    includes = [f"-I{ggml / 'src'}", f"-I{ggml / 'include'}", "-include", str(compiled.source("encoders"))]
    links = [f"-L{here.bin}", "-lggml-base", f"-Wl,-rpath,{here.bin}"]
    compiled.build("encoders", text + "\n" + _HALF, flags=[*_FLAGS, *includes], links=links)


@cache
def encoder(kind: int) -> Any | None:
    """The fast encoder of a ggml type, or None where ggml's own has to do."""
    name = _ENCODERS.get(kind)
    library = None if name is None or plain_encoders() else compiled.library("encoders")
    function = getattr(library, name, None) if library and name else None
    if function is None:
        return None
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return function if _agrees(kind, function) else None


def _agrees(kind: int, function: Any) -> bool:
    """Whether the encoder's bytes are ggml's, on rows of several kinds: another CPU or compiler may round otherwise."""
    library = llamacpp.ggml()
    generator = np.random.default_rng(0)
    rows = np.concatenate(
        [
            generator.standard_normal((8, 512)),
            generator.standard_t(2, (8, 512)),
            generator.integers(-3, 4, (4, 512)),
            np.abs(generator.standard_normal((4, 512))) * np.repeat([0.0, 1e-18, 1e-3, 1.0], 128),
        ]
    ).astype(np.float32)
    importance = generator.random(512).astype(np.float32)
    for vector in (None, importance.ctypes.data):
        ours, theirs = (np.zeros(len(rows) * library.ggml_row_size(kind, 512), np.uint8) for _ in range(2))
        function(rows.ctypes.data, ours.ctypes.data, *rows.shape, vector)
        library.ggml_quantize_chunk(kind, rows.ctypes.data, theirs.ctypes.data, 0, *rows.shape, vector)
        if not _same(ours, theirs):
            return False
    return True


def _same(ours: npt.NDArray[np.uint8], theirs: npt.NDArray[np.uint8]) -> bool:
    return bool(np.array_equal(ours, theirs))


if __name__ == "__main__":
    compiled.main(build)
