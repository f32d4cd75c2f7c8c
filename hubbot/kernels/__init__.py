"""Triton kernels for the loops that are too fine-grained for torch on a GPU; each has a plain-torch twin that defines it."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["kernels_on"]


def kernels_on(tensor: torch.Tensor, name: str) -> ModuleType | None:
    """The module of this package that computes on the tensor's card; None on a CPU and without Triton."""
    return _loaded(name) if tensor.is_cuda else None


@cache
def _loaded(name: str) -> ModuleType | None:
    return import_module(f"hubbot.kernels.{name}") if find_spec("triton") else None
