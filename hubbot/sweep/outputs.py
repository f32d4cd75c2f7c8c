"""What the gradients of a block's linear layers come to, summed while batches pass back through it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hubbot.formats.protocol import Band
from hubbot.sweep.batches import BAND
from hubbot.sweep.group import Group
from hubbot.sweep.inputs import SharedInputs, given_to
from hubbot.sweep.sums import InputSums

__all__ = ["OutputSums"]

Rows = dict[str, slice]  # layer -> some of its outputs


class OutputSums:
    """Sums of g g' over the tokens, g the gradients of the outputs of layers that are given one and the same tensor.

    Their outputs are cut into bands of at most BAND, each with a piece of every layer: heads stay with their keys and
    values, gates with what they let through. linears: checkpoint name of the weight -> layer.
    """

    def __init__(self, linears: Mapping[str, nn.Module], device: torch.device) -> None:
        self._linears = linears
        self._sums = InputSums(device, hessian=True)
        self._fourth: dict[str, float] = {}  # band -> sum over tokens and pairs of outputs of (g_i g_j)^2
        self._sets: dict[str, dict[str, int]] = {}  # first layer of a set -> its layers and their outputs
        self._inputs = SharedInputs()
        self._found: dict[str, list[torch.Tensor]] = {}  # layer -> gradients of the present batch

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, what passes back through the layers is noted."""
        with contextlib.ExitStack() as hooks:
            for name, module in self._linears.items():
                hooks.enter_context(module.register_forward_hook(self._hook(name), with_kwargs=True))
            yield

    def next_batch(self) -> None:
        """To be called after each pass back: adds up what was noted."""
        for first, layers in self._sets.items():
            if all(name in self._found for name in layers):
                gradients = {name: torch.cat(self._found[name]) for name in layers}
                for number, rows in enumerate(_bands(layers)):
                    self._add(
                        _key(first, number), torch.cat([gradients[name][:, own] for name, own in rows.items()], 1)
                    )
        self._inputs.forget()
        self._found.clear()

    def bands(self, group: Group) -> dict[str, tuple[Band, ...]]:
        """Layer -> the bands of its set, over all of the group's windows; layers without gradients are absent."""
        sums = dict(self._sums.statistics(group))
        fourths = group.all_gather(self._fourth)
        sets = {first: layers for share in group.all_gather(self._sets) for first, layers in share.items()}
        found: dict[str, tuple[Band, ...]] = {}
        for first, layers in sets.items():
            bands = []
            for number, rows in enumerate(_bands(layers)):
                key = _key(first, number)
                if (seen := sums.get(key)) is not None and seen.hessian is not None:
                    fourth = sum(share.get(key, 0.0) for share in fourths)
                    bands.append(Band(rows=rows, matrix=_shrunk(seen.hessian, seen.tokens, fourth)))
            found |= dict.fromkeys(layers, tuple(bands)) if bands else {}
        return found

    def _add(self, key: str, rows: torch.Tensor) -> None:
        squares = rows.square()
        pairs = squares.sum(1).double().square().sum() - squares.square().sum(dtype=torch.float64)
        self._fourth[key] = self._fourth.get(key, 0.0) + float(pairs)
        self._sums.add(key, rows)

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            if not isinstance(output, torch.Tensor):  # a router's choice, say
                return
            first = self._inputs.leader(name, given_to(positional, named))
            self._sets.setdefault(first, {})[name] = output.shape[-1]
            if output.requires_grad:
                output.register_hook(lambda gradient: self._note(name, gradient))  # type: ignore[no-untyped-call]

        return hook

    def _note(self, name: str, gradient: torch.Tensor) -> None:
        rows = gradient.reshape(-1, gradient.shape[-1])
        self._found.setdefault(name, []).append(rows.to(torch.float32, copy=True))  # it is autograd's own memory


def _key(first: str, number: int) -> str:
    return f"{first}\t{number}"


def _bands(layers: Mapping[str, int]) -> list[Rows]:
    count = -(-sum(layers.values()) // BAND)
    return [
        {name: slice(size * number // count, size * (number + 1) // count) for name, size in layers.items()}
        for number in range(count)
    ]


def _shrunk(total: torch.Tensor, tokens: int, fourth: float) -> torch.Tensor:
    """The mean of g g', what of it is not on the diagonal shrunk by how unsure it is (Ledoit and Wolf 2004; towards the
    diagonal, Schaefer and Strimmer 2005): by the share that its variance has in its squares.

    total: float32 [outputs, outputs], the sum over tokens. fourth: that of (g_i g_j)^2 over tokens and pairs i, j.
    """
    mean = total / tokens
    diagonal = mean.diagonal().clone()
    squares = float(mean.square().sum(dtype=torch.float64) - diagonal.square().sum(dtype=torch.float64))
    variance = (fourth / tokens - squares) / tokens
    unsure = min(max(variance / squares, 0.0), 1.0) if squares > 0 else 1.0
    mean *= 1 - unsure
    mean.diagonal().copy_(diagonal)
    return mean
