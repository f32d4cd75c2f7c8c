"""The C library's heap, which would keep what large tensors have freed."""

from __future__ import annotations

import ctypes

__all__ = ["give_back", "return_large_blocks"]

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_LARGE = 4 * 2**20  # bytes


def return_large_blocks() -> None:
    """Have large blocks go back to the system when they are freed, where the C library is glibc.

    Of itself glibc raises the size from which it does so up to 32 MB, and a heap of tensors of that size, with small
    ones that stay between them, grows to several times what is in use.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)


def give_back() -> None:
    """Return what small blocks have freed, too; takes about a millisecond."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
