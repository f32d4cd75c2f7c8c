"""Statistics of the inputs of a block's linear layers, gathered while the calibration windows pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hubbot.formats.protocol import InputStatistics, Needs

__all__ = ["StatisticsCollector"]


class StatisticsCollector:
    """Sums x'x or its diagonal over all inputs x of the given layers.

    Layers that are given one and the same tensor (query, key and value; gate and up) share one sum.
    linears: checkpoint name of the weight -> layer.
    """

    def __init__(self, linears: Mapping[str, nn.Module], needs: Needs) -> None:
        self._linears = linears
        self._hessian = needs is Needs.HESSIAN
        self._leader: dict[str, str] = {}  # name -> the name whose sums it shares
        self._squares: dict[str, torch.Tensor] = {}
        self._hessians: dict[str, torch.Tensor] = {}
        self._tokens: dict[str, int] = {}
        self._inputs: list[tuple[torch.Tensor, str]] = []  # of the present forward: kept alive for identity

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, every forward of the layers is counted."""
        hooks = [
            module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name, module in self._linears.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def next_batch(self) -> None:
        """To be called after each forward of the block."""
        self._inputs.clear()

    def statistics(self) -> dict[str, InputStatistics]:
        """Checkpoint name -> statistics; layers that saw no input are absent."""
        shared = {
            leader: InputStatistics(squares=squares, hessian=self._hessians.get(leader), tokens=self._tokens[leader])
            for leader, squares in self._squares.items()
        }
        return {name: shared[leader] for name, leader in self._leader.items()}

    def _hook(self, name: str) -> Any:
        def hook(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._see(name, positional[0] if positional else next(iter(named.values())))

        return hook

    def _see(self, name: str, x: torch.Tensor) -> None:
        leader = next((other for seen, other in self._inputs if seen is x), name)
        if leader == name:
            self._inputs.append((x, name))
        if self._leader.setdefault(name, leader) != name:
            return
        rows = x.reshape(-1, x.shape[-1]).float()
        # summed on their own also where the Hessian has them: the same bytes, whatever else a sweep makes
        self._squares[name] = rows.square().sum(0) + self._squares.get(name, 0)
        if self._hessian:
            if name not in self._hessians:
                self._hessians[name] = torch.zeros((rows.shape[1],) * 2, dtype=torch.float32, device=rows.device)
            _add_products(self._hessians[name], rows)
        self._tokens[name] = self._tokens.get(name, 0) + rows.shape[0]


def _add_products(hessian: torch.Tensor, rows: torch.Tensor) -> None:
    """hessian += rows' rows. On a card of bfloat16 inputs, summed in float32: docs/numbers.md has what that costs."""
    if not rows.is_cuda:
        hessian.addmm_(rows.T, rows)
        return
    rounded = rows.to(torch.bfloat16)
    hessian.add_(torch.mm(rounded.T, rounded, out_dtype=torch.float32))
