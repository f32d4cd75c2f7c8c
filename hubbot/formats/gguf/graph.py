"""The converter's lazy tensors, evaluated without being used up.

The converter builds a graph of operations over lazy tensors. Its own evaluation stores every
intermediate result in the graph and drops the graph on the way; here a tensor can be evaluated as
often as wanted, from whatever stands in for the checkpoint's tensors, and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hubbot import llamacpp

__all__ = ["Leaf", "evaluate", "leaf_tensor", "leaves_of", "size_of"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor of the checkpoint, by name."""

    name: str


def leaf_tensor(name: str, dtype: torch.dtype, shape: tuple[int, ...], read: Callable[[str], torch.Tensor]) -> Any:
    """A lazy tensor that stands for a tensor of the checkpoint.

    read: gives the tensor itself, for the few operations that the converter cannot defer.
    """
    llamacpp.conversion()
    from conversion.base import LazyTorchTensor

    meta = LazyTorchTensor.meta_with_dtype_and_shape(dtype, shape)
    return LazyTorchTensor(meta=meta, args=(Leaf(name),), func=lambda leaf: read(leaf.name))


def evaluate(value: Any, weights: Callable[[str], torch.Tensor]) -> npt.NDArray[Any]:
    """The array that a captured tensor comes to, with `weights` in the place of the checkpoint."""
    lazy = llamacpp.gguf().LazyBase
    done: dict[int, Any] = {}

    def visit(node: Any) -> Any:
        if id(node) not in done:
            done[id(node)] = compute(node)
        return done[id(node)]

    def compute(node: Any) -> Any:
        leaf = _leaf(node)
        if leaf is not None:
            return weights(leaf.name)
        if node._data is not None:
            return node._data
        return node._func(*lazy._recurse_apply(node._args, visit), **node._kwargs)

    with torch.inference_mode():
        result = visit(value) if isinstance(value, lazy) else value
    return np.asarray(result)


def leaves_of(value: Any) -> tuple[str, ...]:
    """Names of the checkpoint's tensors that a captured tensor is made of, in the order of their use."""
    names: dict[str, None] = {}
    for node in _nodes(value):
        leaf = _leaf(node)
        if leaf is not None:
            names[leaf.name] = None
    return tuple(names)


def size_of(value: Any) -> int:
    """How many lazy tensors the graph of a captured tensor has."""
    return len(_nodes(value))


def _nodes(value: Any) -> list[Any]:
    lazy = llamacpp.gguf().LazyBase
    seen: dict[int, Any] = {}

    def visit(node: Any) -> None:
        if id(node) not in seen:
            seen[id(node)] = node
            lazy._recurse_apply(node._args, visit)

    if isinstance(value, lazy):
        visit(value)
    return list(seen.values())


def _leaf(node: Any) -> Leaf | None:
    if len(node._args) == 1 and isinstance(node._args[0], Leaf):
        leaf: Leaf = node._args[0]
        return leaf
    return None
