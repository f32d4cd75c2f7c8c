"""Machine code on a card, launched on torch's stream through the driver's own interface."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Protocol

import torch

__all__ = ["CardRefused", "Launcher", "Module"]

_THREADS = 128  # of a thread block; prelude.h declares as many


class CardRefused(Exception):
    """The driver would not load or launch a program."""


class Launcher(Protocol):
    """Runs a program's kernels."""

    def launch(self, name: str, count: int, *arguments: torch.Tensor | int | None) -> None:
        """A kernel over `count` items, on the current stream. Tensors must outlive it; None is a null pointer."""
        ...


class Module:
    """A program on one card."""

    def __init__(self, code: bytes, device: torch.device) -> None:
        """Raises CardRefused."""
        self._device = device
        self._functions: dict[str, ctypes.c_void_p] = {}
        self._handle = ctypes.c_void_p()
        with torch.cuda.device(device):
            torch.cuda.current_stream()  # makes torch's context, which the module is loaded into
            torch.zeros(1, device=device)
            _require(_driver().cuModuleLoadData(ctypes.byref(self._handle), code))

    def launch(self, name: str, count: int, *arguments: torch.Tensor | int | None) -> None:
        if not count:
            return
        values = [ctypes.c_longlong(count), *map(_argument, arguments)]
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
        size = (-(-count // _THREADS), 1, 1, _THREADS, 1, 1)
        with torch.cuda.device(self._device):
            _require(_driver().cuLaunchKernel(self._function(name), *size, 0, stream, pointers, None))

    def _function(self, name: str) -> ctypes.c_void_p:
        if name not in self._functions:
            found = ctypes.c_void_p()
            _require(_driver().cuModuleGetFunction(ctypes.byref(found), self._handle, name.encode()))
            self._functions[name] = found
        return self._functions[name]


def _argument(value: torch.Tensor | int | None) -> ctypes.c_void_p | ctypes.c_int:
    if isinstance(value, int):
        return ctypes.c_int(value)
    return ctypes.c_void_p(0 if value is None else value.data_ptr())


def _require(result: int) -> None:
    if result:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        raise CardRefused(f"the CUDA driver answers {(text.value or b'').decode()} ({result})")


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise CardRefused(f"the CUDA driver cannot be loaded: {error}") from error
