"""Tensors that lie in files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["mapped"]


def mapped(path: Path, shape: Sequence[int], dtype: torch.dtype, *, written: bool) -> torch.Tensor:
    """The tensor of a file, mapped. written: what is put into it is put into the file, which is made where there is none.

    Raises OSError where the disk has no room for it: a page that finds none later would end the process.
    """
    size = math.prod(shape)
    if not size:
        return torch.empty(tuple(shape), dtype=dtype)
    if written:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(file, 0, size * dtype.itemsize)
        finally:
            os.close(file)
    return torch.from_file(str(path), shared=written, size=size, dtype=dtype).view(tuple(shape))
