"""Attention and products of a block on a card, faster than torch picks them by itself for float32.

docs/numbers.md says what each costs in precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["FusedAttention", "HalfProducts"]

_LARGEST = 60_000.0  # float16 ends at 65,504


class FusedAttention(TorchFunctionMode):
    """Inside, grouped queries get their keys and values repeated.

    For float32 torch has a fused kernel only where every query head has a key of its own; else it writes all scores out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention and len(args) >= 3 and named.pop("enable_gqa", False):
            query, key, value, *others = args
            groups = query.shape[-3] // key.shape[-3]
            args = (query, key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3), *others)
        return func(*args, **named)


class HalfProducts(TorchFunctionMode):
    """Inside, products of linear layers and attention take float16 inputs and sum in float32, where the inputs fit.

    As precise as TF32, whose mantissa has ten bits too, at twice its speed. For the calibration alone: its text says how
    a layer is rounded, not how good it is.
    """

    def __init__(self) -> None:
        super().__init__()
        # the last input and its halves: layers that share one come one after another
        self._last: tuple[torch.Tensor, torch.Tensor | None] | None = None
        # by the place in memory, which the weight holds: an expert's is another slice object every time
        self._weights: dict[tuple[int, torch.Size], tuple[torch.Tensor, torch.Tensor | None]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and not kwargs and all(map(_is_single, args[:2])) and args[1].ndim == 2:
            found = self._linear(*args)
            if found is not None:
                return found
        if func is functional.scaled_dot_product_attention and all(map(_is_single, args)) and len(args) == 3:
            halves = [half for half in map(_halved, args) if half is not None]
            if len(halves) == len(args):
                return functional.scaled_dot_product_attention(*halves, **_with_half_mask(kwargs or {})).float()
        return func(*args, **(kwargs or {}))

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
        if self._last is None or self._last[0] is not x:
            self._last = x, _halved(x)
        place = weight.data_ptr(), weight.shape
        if place not in self._weights:
            self._weights[place] = weight, _halved(weight)
        rows, columns = self._last[1], self._weights[place][1]
        if rows is None or columns is None:
            return None
        found = torch.mm(rows.reshape(-1, rows.shape[-1]), columns.t(), out_dtype=torch.float32)
        found = found if bias is None else found.add_(bias)
        return found.reshape(*x.shape[:-1], weight.shape[0])


def _halved(tensor: torch.Tensor) -> torch.Tensor | None:
    """float16, or None where a number is beyond it."""
    least, most = torch.aminmax(tensor)
    return tensor.half() if bool(torch.maximum(-least, most) < _LARGEST) else None


def _is_single(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.is_cuda and tensor.dtype is torch.float32


def _with_half_mask(named: dict[str, Any]) -> dict[str, Any]:
    mask = named.get("attn_mask")
    if isinstance(mask, torch.Tensor) and mask.dtype is torch.float32:
        return {**named, "attn_mask": mask.half()}
    return named
