"""What a model's forward hands to its decoder blocks, noted once for every shape of batch that needs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from hubbot.sweep.blocks import BlockModel
from hubbot.sweep.given import BlockArguments

__all__ = ["Arguments"]


class Arguments:
    """The arguments of all blocks, by the shape of the batch.

    Rotary tables hold for any number of windows. Where the shape of an argument goes with that number (masks, BLOOM's
    ALiBi biases: windows times heads), arguments are noted for each: some blocks look into a mask window by window.
    """

    def __init__(self, model: BlockModel) -> None:
        self._model = model
        self._noted: dict[tuple[int, int], list[BlockArguments]] = {}
        self._counted: dict[int, bool] = {}  # length -> whether arguments depend on the number of windows

    def of(self, length: int, count: int) -> list[BlockArguments]:
        """Block by block, for `count` windows of `length` tokens."""
        if length not in self._counted:
            one, two = self._note(length, 1), self._note(length, 2)
            self._counted[length] = any(_differ(a, b) for a, b in zip(one, two, strict=True))
        return self._note(length, count if self._counted[length] else 1)

    def _note(self, length: int, count: int) -> list[BlockArguments]:
        key = (length, count)
        if key not in self._noted:
            noted = self._model.arguments(length, count)
            for each in self._model.passage.companions:  # every stream has its own
                noted[each.block] = noted[each.block].replaced({each.key: None})
            self._noted[key] = noted
        return self._noted[key]


def _differ(one: BlockArguments, two: BlockArguments) -> bool:
    """Whether arguments for one window have other shapes than those for two."""
    pairs = zip(_tensors([one.positional, one.named]), _tensors([two.positional, two.named]), strict=True)
    return any(a.shape != b.shape for a, b in pairs)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
