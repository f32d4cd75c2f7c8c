"""Tensors of the checkpoint that hold several layers, put together again from what these are encoded to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from hubbot.formats.linears import Cut, Linear
from hubbot.formats.protocol import Encoded

__all__ = ["Stack", "by_tensor"]


@dataclass(frozen=True, slots=True)
class Stack:
    """A tensor of all experts, or of several layers, of which some are encoded.

    transposed: whether it is [experts, in, out]. pieces: where each encoded layer lies.
    """

    source: torch.Tensor
    transposed: bool
    pieces: Sequence[tuple[Cut, Encoded]]

    def decode(self) -> torch.Tensor:
        whole = self.source.float().clone()
        for cut, encoded in self.pieces:
            cut.of(whole, transposed=self.transposed).copy_(encoded.decode())
        return whole


def by_tensor(
    encoded: Mapping[str, Encoded], layers: Mapping[str, Linear], weights: Mapping[str, torch.Tensor]
) -> dict[str, Encoded]:
    """Encoded layers -> the checkpoint's tensors. layers: by the names of their weights. weights: as stored."""
    found: dict[str, Encoded] = {}
    stacks: dict[str, list[tuple[Cut, Encoded]]] = {}
    for name, one in encoded.items():
        layer = layers[name]
        if layer.cut is None:
            found[name] = one
            continue
        if layer.tensor not in stacks:
            pieces = stacks[layer.tensor] = []
            found[layer.tensor] = Stack(weights[layer.tensor], layer.transposed, pieces)
        stacks[layer.tensor].append((layer.cut, one))
    return found
