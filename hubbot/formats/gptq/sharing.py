"""What the layers and variants of a part share of the solver's work: a factor is made once for all that it is equal for.

Two matrices are factored. A Hessian's factor follows from the layers' inputs, and of a layout from its groups and its order; that of
the gradients, for -e2e, from the outputs that are rounded together alone. Each is as large as its matrix, so one of each kind lives at
a time, and who wants the same must come one after another. Codes are small: they are kept for as long as the Hessian is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from hubbot.domain import Gptq, Packed
from hubbot.errors import Unsupported
from hubbot.formats.gptq import checkpoint
from hubbot.formats.gptq.checkpoint import GptqTensor
from hubbot.formats.gptq.end_to_end import is_weighed
from hubbot.formats.gptq.solver import Curvature, Solution, prepare, solve_together, solve_weighed
from hubbot.formats.gptq.turns import Turns, turns_of
from hubbot.formats.linears import Linear
from hubbot.formats.protocol import Band, InputStatistics

__all__ = ["Solvable", "Solver", "hessian_of", "in_order_of_factors", "sharing_inputs"]

T = TypeVar("T")
Solvable = Gptq | Packed  # a variant whose codes the solver finds


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solved:
    tensor: GptqTensor
    damping: float
    error: float


# A layer, the layout that it is rounded to, those whose outputs' errors count together with its own, and the damping.
_Key = tuple[str, Gptq, tuple[str, ...], float]

# What layers were solved to, by their Hessian and for as long as that lives. The sweep keeps the tensors through a part in any case.
_KNOWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def in_order_of_factors(variants: Iterable[Solvable]) -> list[Solvable]:
    """Those with one factor one after another, by whose comes first."""
    groups: dict[tuple[int, bool], list[Solvable]] = {}
    for variant in variants:
        groups.setdefault(_prepared_for(variant.layout), []).append(variant)
    return [variant for group in groups.values() for variant in group]


def _prepared_for(layout: Gptq) -> tuple[int, bool]:
    """What of a layout a Hessian is made ready for."""
    return layout.group_size, layout.act_order


class Solver:
    """Layers with the same inputs.

    weights: name -> float [out, in]. bands: of the layers' outputs; a layout that goes by them and finds none for a layer rounds it
    as its twin does.
    """

    def __init__(
        self, hessian: torch.Tensor, damping: float, weights: Mapping[str, torch.Tensor], bands: Sequence[Band]
    ) -> None:
        self._hessian, self._damping, self._weights, self._bands = hessian, damping, weights, bands
        self._curvature: _Latest[Curvature] = _Latest()
        self._turns: _Latest[list[Turns]] = _Latest()
        self._known: dict[_Key, _Solved] = _KNOWN.setdefault(hessian, {})  # type: ignore[no-untyped-call]

    def solved(self, layout: Gptq, rounded: Collection[str]) -> dict[str, _Solved]:
        """Those of the layers that are to be rounded. Raises Unsupported where a matrix is not finite."""
        names = [name for name in self._weights if name in rounded]
        weighed = tuple(name for name in names if layout.end_to_end and is_weighed(name, self._bands))
        plainly = replace(layout, end_to_end=False)
        wanted: dict[str, _Key] = {
            name: (name, layout, weighed, self._damping) if name in weighed else (name, plainly, (), self._damping)
            for name in names
        }
        missing = {name: self._weights[name] for name, key in wanted.items() if key not in self._known}
        together = {name: missing.pop(name) for name in weighed if name in missing}
        for some, found in self._solutions(missing, together, layout):
            for name, solution in zip(some, found, strict=True):
                tensor = checkpoint.pack(solution, layout)
                self._known[wanted[name]] = _Solved(tensor=tensor, damping=solution.damping, error=solution.error)
        return {name: self._known[key] for name, key in wanted.items()}

    def solve_ahead(self, layout: Gptq, rounded: Collection[str]) -> None:
        """For another, who meets again what this fails at. Without gradients nobody may be left to ask for what they weigh."""
        if self._bands or not layout.end_to_end:
            with contextlib.suppress(Unsupported):
                self.solved(layout, rounded)

    def _solutions(
        self, plain: Mapping[str, torch.Tensor], weighed: Mapping[str, torch.Tensor], layout: Gptq
    ) -> Iterator[tuple[Iterable[str], list[Solution]]]:
        def curvature() -> Curvature:
            return self._curvature.of(_prepared_for(layout), lambda: prepare(self._hessian, layout, self._damping))

        for some in _solved_together(plain):
            yield some, solve_together(list(some.values()), curvature(), layout)
        if weighed:
            sizes = {name: len(weight) for name, weight in weighed.items()}
            turns = self._turns.of(tuple(weighed), lambda: turns_of(self._bands, sizes, self._hessian.device))
            yield weighed, solve_weighed(list(weighed.values()), turns, curvature(), layout)


class _Latest(Generic[T]):
    """What was made last, for as long as the same is asked for."""

    def __init__(self) -> None:
        self._held: tuple[object, T] | None = None

    def of(self, key: object, make: Callable[[], T]) -> T:
        if self._held is None or self._held[0] != key:
            self._held = None  # lets go of the last one first
            self._held = key, make()
        return self._held[1]


def _solved_together(weights: Mapping[str, torch.Tensor]) -> Iterator[Mapping[str, torch.Tensor]]:
    """Layers with the same inputs: on a card all at once, on a CPU one by one, for there it saves no time and takes memory."""
    if weights and all(weight.is_cuda for weight in weights.values()):
        yield weights
        return
    for name, weight in weights.items():
        yield {name: weight}


def hessian_of(layer: Linear, statistics: Mapping[str, InputStatistics]) -> torch.Tensor:
    """Raises Unsupported where the calibration has none."""
    found = statistics.get(layer.statistics)
    if found is None or found.hessian is None:
        msg = (
            f"No calibration inputs were seen for {layer.name}, so GPTQ cannot round it. A layer that the calibration text "
            "never reaches cannot be quantized this way; leave GPTQ variants out for this model."
        )
        raise Unsupported(msg)
    return found.hessian


def sharing_inputs(layers: Sequence[Linear], statistics: Mapping[str, InputStatistics]) -> list[list[Linear]]:
    """Layers with the same inputs, as query, key and value have, together.

    Experts share a Hessian only where the calibration gave them one object: comparing hundreds would take longer.
    """
    together: list[list[Linear]] = []
    first: dict[int, tuple[torch.Tensor, list[Linear]]] = {}
    for layer in layers:
        hessian = hessian_of(layer, statistics)
        group = first.get(id(hessian), (hessian, None))[1]
        if group is None and not layer.expert:
            group = next((those for known, those in first.values() if torch.equal(known, hessian)), None)
        if group is None:
            group = []
            together.append(group)
        first.setdefault(id(hessian), (hessian, group))
        group.append(layer)
    return together
