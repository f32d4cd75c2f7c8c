"""Statistics of the inputs of a block's linear layers, gathered while the calibration windows pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hubbot.formats.protocol import InputStatistics, Needs
from hubbot.sweep.group import Group
from hubbot.sweep.inputs import SharedInputs, given_to
from hubbot.sweep.sums import InputSums

__all__ = ["StatisticsCollector"]


class StatisticsCollector:
    """Sums x'x or its diagonal over all inputs x of the given layers.

    Layers that are given one and the same tensor (query, key and value; gate and up) share one sum.
    linears: checkpoint name of the weight -> layer.
    """

    def __init__(self, linears: Mapping[str, nn.Module], needs: Needs, device: torch.device) -> None:
        self._linears = linears
        self._leader: dict[str, str] = {}  # name -> the name whose sums it shares
        self._sums = InputSums(device, needs.hessian)
        self._inputs = SharedInputs()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, every forward of the layers is counted."""
        with contextlib.ExitStack() as hooks:
            for name, module in self._linears.items():
                hooks.enter_context(module.register_forward_pre_hook(self._hook(name), with_kwargs=True))
            yield

    def next_batch(self) -> None:
        """To be called after each forward of the block."""
        self._inputs.forget()

    def statistics(self, group: Group) -> dict[str, InputStatistics]:
        """Checkpoint name -> statistics over all of the group's windows; layers that saw no input are absent."""
        shared = dict(self._sums.statistics(group))
        leaders = {name: leader for share in group.all_gather(self._leader) for name, leader in share.items()}
        return {name: shared[leader] for name, leader in leaders.items()}

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._see(name, given_to(positional, named))

        return hook

    def _see(self, name: str, x: torch.Tensor) -> None:
        leader = self._inputs.leader(name, x)
        if self._leader.setdefault(name, leader) != name:
            return
        self._sums.add(name, x.reshape(-1, x.shape[-1]).float())
