"""Memory and name of an NVIDIA GPU through its driver's library NVML, without loading torch or CUDA.

A process that only watches should not hold half a gigabyte of GPU memory for a context of its own.
Layouts are those of nvml.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count, takewhile
from typing import Any

from hubbot.environment import PROCESS

__all__ = ["Gpu", "gpu_of", "gpus_of", "no_other", "number_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    name: str
    total: int  # bytes
    free: int
    driver: str
    capability: tuple[int, int]  # (9, 0) of an H100; (0, 0) where the driver does not say


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def number_of(device: str) -> int:
    """Of the card that auto, cuda or cuda:N stands for, as CUDA counts them."""
    return int(device.partition(":")[2] or 0)


def no_other(device: str, environ: Mapping[str, str] = PROCESS) -> dict[str, str]:
    """What has a process see that card alone, as its first; none for cpu."""
    return {"CUDA_VISIBLE_DEVICES": _word(number_of(device), environ) if device.startswith("cuda") else ""}


def gpu_of(device: str) -> Gpu | None:
    """The GPU that auto, cuda or cuda:N stands for, as CUDA counts them; None for cpu and where there is none."""
    library = _library() if device != "cpu" else None
    handle = _handle(library, number_of(device), PROCESS) if library else None
    if library is None or handle is None:
        return None
    memory = _Memory()
    name, driver = ctypes.create_string_buffer(96), ctypes.create_string_buffer(80)
    if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
        return None
    library.nvmlDeviceGetName(handle, name, ctypes.c_uint(len(name)))
    library.nvmlSystemGetDriverVersion(driver, ctypes.c_uint(len(driver)))
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    return Gpu(
        name=name.value.decode(errors="replace"),
        total=memory.total,
        free=memory.free,
        driver=driver.value.decode(errors="replace"),
        capability=(major.value, minor.value),
    )


def gpus_of(device: str) -> list[Gpu]:
    """The GPUs that a sweep takes: all that are visible for auto and cuda, else the one that is named."""
    if device not in {"auto", "cuda"}:
        found = [gpu_of(device)]
    else:
        found = list(takewhile(bool, (gpu_of(f"cuda:{number}") for number in count())))
    return [card for card in found if card]


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


def _handle(library: Any, index: int, environ: Mapping[str, str]) -> ctypes.c_void_p | None:
    word = _word(index, environ)
    if not word:
        return None
    handle = ctypes.c_void_p()
    if word.isdecimal():
        found = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(word)), ctypes.byref(handle))
    else:
        found = library.nvmlDeviceGetHandleByUUID(word.encode(), ctypes.byref(handle))
    return handle if found == 0 else None


def _word(index: int, environ: Mapping[str, str]) -> str:
    """What the driver calls a card that CUDA counts so; nothing where there is no such card."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(index + 1)] if visible is None else visible.split(",")
    return names[index].strip() if index < len(names) else ""
