"""How a checkpoint's tensors fill the parameters that transformers computes with.

Most fill one parameter each, under another name at most. Some are converted together when a model is loaded:
transformers keeps the experts of a block as one 3-D parameter, while most checkpoints store a matrix an expert.
The rules are transformers' own (`conversion_mapping`); here they are applied to one group of tensors at a time, so
that one block can be filled without the rest of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from hubbot.errors import Unsupported

__all__ = ["CheckpointMap", "Group", "Place", "cuts_tensors", "holds_experts", "map_checkpoint", "places_of_experts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Checkpoint tensors that fill parameters together.

    target: the parameter, or the first of several. members: names in the order in which they are stacked.
    converter: None where one tensor is one parameter as it stands.
    """

    target: str
    members: tuple[str, ...]
    patterns: tuple[str, ...] = ()  # of the converter, one a member
    converter: WeightConverter | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """Every parameter that the members fill."""
        if self.converter is None:
            return (self.target,)
        first, *others = self.converter.target_patterns
        return (self.target, *(self.target.replace(first, other) for other in others))

    def convert(self, tensors: Mapping[str, torch.Tensor], model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """Parameter -> its value, from the values of all members. Raises Unsupported where they do not go together."""
        if self.converter is None:
            return {self.target: tensors[self.members[0]]}
        converter = copy.deepcopy(self.converter)
        values = _of_one_dtype([tensors[name] for name in self.members])
        for name, pattern, value in zip(self.members, self.patterns, values, strict=True):
            converter.add_tensor(self.target, name, pattern, lambda tensor=value: tensor)
        try:
            found: dict[str, Any] = converter.convert(self.target, model=model, config=model.config)
        except Exception as error:  # the operations of a foreign library, on a stranger's tensors
            msg = (
                f"{self.members[0]} and {len(self.members) - 1} more tensors cannot be put together into {self.target} "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}). Check that config.json belongs to the checkpoint."
            )
            raise Unsupported(msg) from error
        return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}


def _of_one_dtype(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """As they are where all have one dtype, else in float32: decoded weights beside stored ones."""
    return tensors if len({tensor.dtype for tensor in tensors}) == 1 else [tensor.float() for tensor in tensors]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a checkpoint matrix lies in a parameter of experts; expert None: it holds every expert's.

    first: whether it begins the expert's part, where several matrices make it up.
    """

    parameter: str
    expert: int | None
    first: bool = True


@dataclass(frozen=True)
class CheckpointMap:
    """groups: every tensor that fills something, once. Tensors that fill nothing (old rotary tables) have none."""

    groups: tuple[Group, ...]

    @cached_property
    def group_of(self) -> dict[str, Group]:
        """Checkpoint name -> its group."""
        return {name: group for group in self.groups for name in group.members}

    @cached_property
    def alone(self) -> dict[str, str]:
        """Checkpoint name -> the parameter that it fills by itself, as it stands."""
        return {group.members[0]: group.target for group in self.groups if group.converter is None}

    @cached_property
    def filled(self) -> frozenset[str]:
        """Every parameter that some tensor fills, by itself or with others."""
        return frozenset(target for group in self.groups for target in group.targets)


def cuts_tensors(model: PreTrainedModel) -> bool:
    """Whether transformers cuts a tensor of such checkpoints into several parameters."""
    rules = get_model_conversion_mapping(model)
    return any(isinstance(rule, WeightConverter) and len(rule.target_patterns) > 1 for rule in rules)


def holds_experts(module: nn.Module) -> bool:
    """Whether parameters of its own hold a matrix for each of several experts; those of a convolution, and of a state space's
    mixer around one, which has matrices by heads (Zamba), do not."""
    stacked = any(value.ndim == 3 for value in module._parameters.values() if value is not None)
    return stacked and not any(isinstance(each, nn.Conv1d) for each in (module, *module.children()))


def map_checkpoint(model: PreTrainedModel, names: Iterable[str]) -> CheckpointMap:
    """Group a checkpoint's names by what they fill in the model: parameters, and buffers that belong to its state."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern: dict[str, WeightConverter] = {}
    for converter in converters:
        for pattern in converter.source_patterns:
            by_pattern.setdefault(pattern, converter)
    wanted = model.state_dict()  # with the buffers that checkpoints store, without rotary tables
    groups: list[Group] = []
    together: dict[tuple[str, int], tuple[WeightConverter, list[tuple[str, str]]]] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        if pattern is not None:
            converter = by_pattern[pattern]
            together.setdefault((target, id(converter)), (converter, []))[1].append((name, pattern))
        elif target in wanted:
            groups.append(Group(target=target, members=(name,)))
    for (target, _), (converter, found) in together.items():
        members, patterns = zip(*found, strict=True)
        groups.append(Group(target=target, members=members, patterns=patterns, converter=converter))
    return CheckpointMap(tuple(groups))


def places_of_experts(group: Group, shapes: Mapping[str, tuple[int, ...]], model: PreTrainedModel) -> dict[str, Place]:
    """Checkpoint name -> the parameter and expert that it fills, seen by sending numbers instead of weights.

    shapes: of every member. Each member becomes its own number, and where the number comes out says what it fills;
    nothing is known here of how experts are stacked. Members of parameters without a dimension of experts are left out.
    """
    number_of = {name: number for number, name in enumerate(group.members, 1)}
    probes = {name: torch.full(shapes[name], number, dtype=torch.int32) for name, number in number_of.items()}
    found: dict[str, Place] = {}
    for parameter, values in group.convert(probes, model).items():
        if values.ndim != 3:
            continue
        experts_of: dict[int, list[int]] = {}
        for expert, matrix in enumerate(values):
            for number in matrix.unique().tolist():
                experts_of.setdefault(number, []).append(expert)
        for name, number in number_of.items():
            if experts := experts_of.get(number):
                first = bool(values[experts[0]].flatten()[0] == number)
                found[name] = Place(parameter=parameter, expert=experts[0] if len(experts) == 1 else None, first=first)
    return found
