"""What linear layers are given in a forward, and which of them are given one and the same tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["SharedInputs", "given_to"]


def given_to(positional: tuple[Any, ...], named: Mapping[str, Any]) -> torch.Tensor:
    """The input of a layer, by the arguments of its forward."""
    x: torch.Tensor = positional[0] if positional else next(iter(named.values()))
    return x


_LAST = 16  # layers with one input are run soon after another


class SharedInputs:
    """The last inputs of one forward, kept alive so that identity holds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[torch.Tensor, str]] = deque(maxlen=_LAST)

    def leader(self, name: str, x: torch.Tensor) -> str:
        """The first layer that was given this very tensor; the layer itself where it is the first."""
        first = next((other for seen, other in self._seen if seen is x), name)
        if first == name:
            self._seen.append((x, name))
        return first

    def forget(self) -> None:
        self._seen.clear()
