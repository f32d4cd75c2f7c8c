"""The C library's functions for the kernel's calls that Python has no name for."""

from __future__ import annotations

import ctypes

__all__ = ["LIBC", "prctl"]

LIBC = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, *arguments: object) -> int:
    words = [
        argument if isinstance(argument, ctypes.c_char_p) else ctypes.c_ulong(int(str(argument)))
        for argument in arguments
    ]
    words += [ctypes.c_ulong(0)] * (4 - len(words))
    return int(LIBC.prctl(option, *words))
