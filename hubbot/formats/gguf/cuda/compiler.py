"""Programs for the card there is, by NVRTC, the compiler that torch's CUDA wheels bring; each is compiled once.

Machine code is kept in `~/.cache/hubbot/cubins` under a name made of text, options, compiler and card. NVRTC's own
cache is left out: it takes programs for equal whose options differ.
"""

from __future__ import annotations

import ctypes
import hashlib
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

__all__ = ["CompilerMissing", "cubin"]

# Contraction off: a fused product and sum rounds once instead of twice, and the bytes would change.
_OPTIONS = ("--fmad=false", "--std=c++17", "--restrict")
_NO_CACHE = "--no-cache"
_INVALID_OPTION = 5


class CompilerMissing(Exception):
    """There is no NVRTC, or it cannot compile a program for this card."""


def cubin(text: str, capability: tuple[int, int]) -> bytes:
    """Machine code of a program for cards of a compute capability. Raises CompilerMissing."""
    options = (*_OPTIONS, f"--gpu-architecture=sm_{capability[0]}{capability[1]}")
    key = hashlib.sha256("\0".join((text, *options, *map(str, _version()))).encode()).hexdigest()[:32]
    kept = Path.home() / ".cache" / "hubbot" / "cubins" / f"{key}.cubin"
    try:
        return kept.read_bytes()
    except OSError:
        code = _compiled(text, options)
        _keep(kept, code)
        return code


def _keep(path: Path, code: bytes) -> None:
    """By rename, so that a killed run leaves no half a file; a place that cannot be written to costs the time again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as partial:
            partial.write(code)
        Path(partial.name).replace(path)
    except OSError:
        return


def _compiled(text: str, options: tuple[str, ...]) -> bytes:
    library, program = _nvrtc(), ctypes.c_void_p()
    _require(library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"ggml.cu", 0, None, None), "begin")
    try:
        result = _run(program, (*options, _NO_CACHE))
        if result == _INVALID_OPTION:  # an NVRTC from before it had a cache
            result = _run(program, options)
        if result:
            raise CompilerMissing(f"NVRTC could not compile: {_log(program)}")
        size = ctypes.c_size_t()
        _require(library.nvrtcGetCUBINSize(program, ctypes.byref(size)), "measure")
        code = ctypes.create_string_buffer(size.value)
        _require(library.nvrtcGetCUBIN(program, code), "read")
        return code.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _run(program: ctypes.c_void_p, options: tuple[str, ...]) -> int:
    words = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    return int(_nvrtc().nvrtcCompileProgram(program, len(options), words))


def _log(program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    _nvrtc().nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value + 1)
    _nvrtc().nvrtcGetProgramLog(program, log)
    return log.value.decode(errors="replace")[:600]


def _require(result: int, what: str) -> None:
    if result:
        raise CompilerMissing(f"NVRTC could not {what} a program: error {result}")


@cache
def _version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _require(_nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "name its version for")
    return major.value, minor.value


@cache
def _nvrtc() -> ctypes.CDLL:
    for name in _names():
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CompilerMissing("torch brought no libnvrtc, and the system has none")


def _names() -> Iterator[str]:
    """Where torch's wheels put NVRTC, and what the system's loader would call it."""
    major = (torch.version.cuda or "13").split(".")[0]
    wheels = Path(torch.__file__).parent.parent / "nvidia"
    yield from map(str, sorted(wheels.glob(f"*/lib/libnvrtc.so.{major}*")))
    yield f"libnvrtc.so.{major}"
