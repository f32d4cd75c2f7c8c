"""What each expert of a block is given while the calibration windows pass.

transformers computes experts from one 3-D parameter, in a loop, grouped or batched. So not modules are watched but
matrix products: the expert is told from where its slice lies in the parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any, TypeAlias

import torch
from torch.overrides import TorchFunctionMode

from hubbot.domain import ExpertUse
from hubbot.formats.protocol import FEWEST_TOKENS, InputStatistics, Needs, expert_name
from hubbot.model.mapping import Place
from hubbot.sweep.group import Group
from hubbot.sweep.sums import InputSums

__all__ = ["ExpertStatistics"]

See: TypeAlias = Callable[[str, int, torch.Tensor], None]  # parameter, expert, inputs [rows, features]

# Products, and where their inputs and their weights stand among the arguments.
_PRODUCTS: dict[Any, tuple[int, int]] = {
    torch.nn.functional.linear: (0, 1),
    torch.matmul: (0, 1),
    torch.Tensor.matmul: (0, 1),
    torch.Tensor.__matmul__: (0, 1),
    torch.mm: (0, 1),
    torch.bmm: (0, 1),
    torch.addmm: (1, 2),
    torch.baddbmm: (1, 2),
}


class ExpertStatistics:
    """Sums of squares, or X'X, of every expert's inputs.

    weights: checkpoint name -> what it fills. parameter: gives a parameter as it stands in the model.
    """

    def __init__(
        self,
        weights: Sequence[tuple[str, Place]],
        parameter: Callable[[str], torch.Tensor],
        needs: Needs,
        device: torch.device,
    ) -> None:
        self._weights = weights
        self._parameters = {place.parameter: parameter(place.parameter) for _, place in weights}
        self._sums = InputSums(device, needs.hessian)
        self._tokens: dict[str, int] = {}  # of `expert_name`, once `statistics` has added up

    def listening(self) -> AbstractContextManager[Any]:
        """Inside, every product of an expert is counted."""
        return _Products(self._parameters, self._see) if self._parameters else nullcontext()

    def statistics(self, group: Group) -> dict[str, InputStatistics]:
        """Checkpoint name -> statistics over all of the group's windows; of a tensor that holds all experts, one entry for
        each under `expert_name`.

        Experts that saw no token are absent.
        """
        sums = dict(self._sums.statistics(group))
        self._tokens = {name: seen.tokens for name, seen in sums.items()}
        found: dict[str, InputStatistics] = {}
        for name, place in self._weights:
            if place.expert is not None:
                if (seen := sums.get(expert_name(place.parameter, place.expert))) is not None:
                    found[name] = seen
                continue
            for expert in range(self._parameters[place.parameter].shape[0]):
                if (seen := sums.get(expert_name(place.parameter, expert))) is not None:
                    found[expert_name(name, expert)] = seen
        return found

    def use(self, block: int, most: int) -> ExpertUse | None:
        """How many tokens came to each expert, by `statistics`; None of a block without any. most: tokens of the busiest layer."""
        seen: dict[tuple[str, int], int] = {}
        for parameter, value in self._parameters.items():
            for expert in range(value.shape[0]):
                key = parameter.rpartition(".")[0], expert
                seen[key] = max(seen.get(key, 0), self._tokens.get(expert_name(parameter, expert), 0))
        if not seen or not most:
            return None
        tokens = list(seen.values())
        return ExpertUse(
            block=block,
            experts=len(tokens),
            few=sum(count <= FEWEST_TOKENS * most for count in tokens),
            least=min(tokens) / most,
            median=median(tokens) / most,
        )

    def _see(self, parameter: str, expert: int, rows: torch.Tensor) -> None:
        rows = rows[rows.abs().amax(-1) > 0].float()  # batched products hand every expert zeros for the others' tokens
        if len(rows):
            self._sums.add(expert_name(parameter, expert), rows)


class _Products(TorchFunctionMode):
    """Tells of every product of some inputs with a slice of a watched parameter [experts, …, …]."""

    def __init__(self, watched: dict[str, torch.Tensor], see: See) -> None:
        super().__init__()
        self._see = see
        self._by_storage = {value.untyped_storage().data_ptr(): (name, value) for name, value in watched.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        where = _PRODUCTS.get(func)
        if where and len(args) > where[1] and all(isinstance(args[place], torch.Tensor) for place in where):
            rows, weight = args[where[0]], args[where[1]]
            found = self._by_storage.get(weight.untyped_storage().data_ptr())
            if found:
                self._tell(*found, rows, weight)
        return func(*args, **(kwargs or {}))

    def _tell(self, name: str, parameter: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor) -> None:
        first = (weight.storage_offset() - parameter.storage_offset()) // parameter.stride(0)
        if weight.ndim == 2:
            self._see(name, first, rows.reshape(-1, rows.shape[-1]))
        else:
            for index in range(weight.shape[0]):
                self._see(name, first + index, rows[index])
