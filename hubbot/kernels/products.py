"""Matrix products of float32 on a card's matrix units, in TF32: ten bits of mantissa, sums in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["allow_tf32", "tf32"]


def allow_tf32(allowed: bool) -> None:
    """Products on a card are TF32's from now on, or float32's. docs/numbers.md says where this is used."""
    torch.backends.cuda.matmul.allow_tf32 = allowed


@contextmanager
def tf32() -> Iterator[None]:
    """Inside, products on a card are TF32's; a CPU's are what they were."""
    allow_tf32(True)
    try:
        yield
    finally:
        allow_tf32(False)
