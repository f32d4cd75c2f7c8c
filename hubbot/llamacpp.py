"""Finds the pinned llama.cpp and opens its parts: converter, encoder, tools, bindings.

One source release gives everything, so that converter, recipe, encoder and runtime always agree. It lies in
$HUBBOT_LLAMA_CPP, else in ~/.cache/hubbot/llama.cpp-<PIN>, as `source/` (the tree), `build/bin/` (libraries and
tools) and `bindings/` (the Python package llama_cpp). `hubbot setup` builds it (setup.py).
"""

from __future__ import annotations

import ctypes
import importlib
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from hubbot.environment import PROCESS, llama_cpp
from hubbot.errors import ToolMissing

__all__ = [
    "ALL_LAYERS",
    "PIN",
    "LlamaCpp",
    "bindings",
    "conversion",
    "cuda_backend",
    "find",
    "ggml",
    "gguf",
    "multimodal",
    "open_cards",
    "place",
    "require_multimodal",
    "run_tool",
    "runtime_name",
    "tool",
]

ALL_LAYERS = 1 << 20  # n_gpu_layers of a model that a card holds whole
PIN = "0.3.36"  # the llama-cpp-python release whose sdist carries the tree

_NEXT = (
    "Run `hubbot setup`, which builds it once, or point HUBBOT_LLAMA_CPP at a folder with source/ (the llama.cpp tree) "
    "and build/bin/ (its libraries and tools)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCpp:
    """Where llama.cpp lies."""

    source: Path  # the tree, with conversion/ and gguf-py/
    bin: Path  # libllama.so, libggml*.so, llama-quantize, …
    bindings: Path  # holds llama_cpp/; absent in a build of somebody's own, who installs llama-cpp-python


@cache
def find() -> LlamaCpp:
    """The llama.cpp to use. Raises ToolMissing naming the place that was searched."""
    searched = place()
    folders = (searched / "source", searched / "build" / "bin", searched / "bindings")
    source, programs, bindings = (folder.resolve() for folder in folders)
    here = LlamaCpp(source=source, bin=programs, bindings=bindings)
    if (here.source / "conversion" / "base.py").is_file() and _library(here, "ggml-base").is_file():
        return here
    msg = f"No built llama.cpp was found (searched {searched}). {_NEXT}"
    raise ToolMissing(msg)


def place() -> Path:
    """Where llama.cpp has to lie. Who names a folder means that one and no other."""
    return llama_cpp() or Path.home() / ".cache" / "hubbot" / f"llama.cpp-{PIN}"


def _library(here: LlamaCpp, name: str) -> Path:
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    return here.bin / f"lib{name}{suffix}"


def tool(name: str) -> Path:
    """The path of one of llama.cpp's programs, such as `llama-quantize`."""
    path = find().bin / name
    if not path.is_file():
        msg = f"{path} is missing; hubbot needs this program of llama.cpp. {_NEXT}"
        raise ToolMissing(msg)
    return path


def run_tool(name: str, arguments: Sequence[str | Path], *, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run one of llama.cpp's programs without a shell, output and errors merged in `stdout`."""
    command = [str(tool(name)), *map(str, arguments)]
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        msg = (
            f"{name} did not finish within {timeout:.0f} s ({' '.join(command)}). Run it by hand to see where it hangs."
        )
        raise ToolMissing(msg) from None


def gguf() -> ModuleType:
    """The `gguf` package of the pinned tree; never the one of PyPI, which may disagree with the converter."""
    return _import("gguf", find().source / "gguf-py")


def conversion() -> ModuleType:
    """The `conversion` package of the pinned tree: the converter's architectures."""
    gguf()  # first, so that the converter's own path juggling finds it loaded
    return _import("conversion", find().source)


@cache
def _import(name: str, folder: Path) -> ModuleType:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        msg = f"llama.cpp's Python package {name!r} in {folder} cannot be imported: {error}. {_NEXT}"
        raise ToolMissing(msg) from error
    origin = Path(module.__file__ or "").resolve()
    if not origin.is_relative_to(folder.resolve()):
        msg = f"The Python package {name!r} comes from {origin}, not from the pinned llama.cpp in {folder}. Uninstall it from this environment."
        raise ToolMissing(msg)
    return module


class _TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


@cache
def ggml() -> ctypes.CDLL:
    """libggml-base with the signatures that hubbot calls declared. Calls release the interpreter lock."""
    path = _library(find(), "ggml-base")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        msg = f"{path} cannot be loaded: {error}. {_NEXT}"
        raise ToolMissing(msg) from error
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ggml_quantize_init": (None, [ctypes.c_int]),
        "ggml_quantize_requires_imatrix": (ctypes.c_bool, [ctypes.c_int]),
        "ggml_quantize_chunk": (
            ctypes.c_size_t,
            [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p],
        ),
        "ggml_validate_row_data": (ctypes.c_bool, [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]),
        "ggml_row_size": (ctypes.c_size_t, [ctypes.c_int, ctypes.c_int64]),
        "ggml_blck_size": (ctypes.c_int64, [ctypes.c_int]),
        "ggml_type_name": (ctypes.c_char_p, [ctypes.c_int]),
        "ggml_get_type_traits": (ctypes.POINTER(_TypeTraits), [ctypes.c_int]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def bindings() -> ModuleType:
    """The `llama_cpp` bindings bound to the pinned libraries.

    Loads libllama into this process: a bad file may abort it, so only child processes call this.
    """
    here = find()
    PROCESS["LLAMA_CPP_LIB_PATH"] = str(here.bin)
    if here.bindings.is_dir() and str(here.bindings) not in sys.path:
        sys.path.insert(0, str(here.bindings))
    try:
        return importlib.import_module("llama_cpp")
    except (ImportError, RuntimeError, OSError) as error:
        msg = f"The bindings llama_cpp cannot be imported: {error}. Install what they need (`pip install 'hubbot[gguf]'`) and run `hubbot setup`."
        raise ToolMissing(msg) from error


def cuda_backend() -> Path | None:
    """ggml's CUDA backend, a library that llama.cpp loads as it runs; None where `hubbot setup` has built none."""
    library = place().absolute() / "cuda" / "libggml-cuda.so"
    return library if library.is_file() else None


def open_cards() -> bool:
    """Have llama.cpp compute on cards in this process; False where it was not built for any, or sees none."""
    api = bindings()
    if (backend := cuda_backend()) and not api.llama_supports_gpu_offload():
        load = ctypes.CDLL(str(_library(find(), "ggml"))).ggml_backend_load
        load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
        load(str(backend).encode())
    return bool(api.llama_supports_gpu_offload())


def require_multimodal() -> None:
    """Raise ToolMissing where this llama.cpp was built without libmtmd, which nothing but models that see images needs."""
    library = _library(find(), "mtmd")
    if not library.is_file():
        msg = f"{library} is missing: this llama.cpp was built without its multimodal library, in which models that see images are checked. {_NEXT}"
        raise ToolMissing(msg)


def multimodal() -> ModuleType:
    """The bindings of libmtmd, which shows images to a model that `bindings` loads; for child processes alone, as those."""
    bindings()
    require_multimodal()
    PROCESS["MTMD_CPP_LIB"] = str(find().bin)
    return importlib.import_module("llama_cpp.mtmd_cpp")


@cache
def runtime_name(*, on_card: bool = False) -> str:
    """`llama.cpp 0.5.0-dev (llama-cpp-python 0.3.36, CUDA)`: what model cards and records call the runtime."""
    answer = run_tool("llama-bench", ["--version"], timeout=30).stdout
    version = re.search(r"version: (\S+)", answer)
    return f"llama.cpp {version[1] if version else 'unknown'} (llama-cpp-python {PIN}{', CUDA' if on_card else ''})"
