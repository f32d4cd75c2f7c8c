"""Weights that several parts of a model compute with, of which a checkpoint stores one copy: Zamba 2's shared transformer."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from hubbot.model.mapping import CheckpointMap
from hubbot.model.parts import Part, PartKind

__all__ = ["borrowed_tensors"]


def borrowed_tensors(
    model: PreTrainedModel, stack: nn.ModuleList, parts: Iterable[Part], checkpoint: CheckpointMap
) -> dict[int, tuple[str, ...]]:
    """By number of a decoder block, checkpoint names of what it computes with and another part stores; none of other blocks.

    stack: the decoder blocks of the model, whose weights are tied as it computes with them.
    """
    blocks: dict[int, set[int]] = {}  # identity of a parameter -> the blocks that hold it
    for index, block in enumerate(stack):
        for parameter in block.parameters():
            blocks.setdefault(id(parameter), set()).add(index)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[int, dict[str, None]] = {}
    for part in parts:
        own = {part.index} if part.kind is PartKind.BLOCK else set()
        for name in part.tensors:
            targets = checkpoint.group_of[name].targets if name in checkpoint.group_of else ()
            holding = [blocks.get(id(parameters[target]), set()) for target in targets if target in parameters]
            for index in set().union(*holding) - own:
                found.setdefault(index, {})[name] = None
    return {index: tuple(names) for index, names in sorted(found.items())}
