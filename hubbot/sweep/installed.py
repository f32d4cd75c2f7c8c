"""A causal language model of which one part at a time has weights.

transformers builds the model on the meta device; a part's tensors are put in when its turn comes and
taken out afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hubbot.kernels.products import allow_tf32
from hubbot.model.agreement import refuse_gaps
from hubbot.model.architectures import sees_images
from hubbot.model.borrowed import borrowed_tensors
from hubbot.model.empty import build_model, decoder_blocks, is_tied
from hubbot.model.mapping import Group, Place, holds_experts, map_checkpoint, places_of_experts
from hubbot.model.parts import Part, PartKind, in_tower

__all__ = ["InstalledModel", "Weights"]

Weights = Callable[[Part], Mapping[str, torch.Tensor]]  # the tensors of a part, as stored


class InstalledModel:
    """The model of a folder, built without weights.

    parts: the layout of the checkpoint (see `hubbot.model.part_layout`).
    device: where parts are computed, in float32.
    Raises Unsupported where transformers does not know the architecture, SourceRefused where tensors are missing.
    """

    def __init__(self, folder: Path, parts: tuple[Part, ...], device: torch.device) -> None:
        self.device = device
        self.model = build_model(folder)
        self._map = map_checkpoint(self.model, [name for part in parts for name in part.tensors])
        refuse_gaps(self.model, self._map)
        self.blocks = decoder_blocks(self.model, parts, self._map)
        self.largest_part = _largest(self.model, self.blocks)
        self._places = _places(self.model)
        self.borrowed = borrowed_tensors(self.model, self.blocks, parts, self._map)
        self._early = [name for part in parts if part.kind is PartKind.EMBEDDING for name in part.tensors]
        self._towers = _towers(self.model, parts)
        self._weightless: list[nn.Module] | None = None  # None: not looked for since a part came or went
        self._stacked: dict[str, torch.Tensor] = {}  # tensors that fill a parameter only together, as they came
        self.tied = is_tied(self.model)  # the output head is the embedding: its tensors serve both
        _to_device(self.model, device)
        if device.type == "cuda":
            _use_matrix_units(self.model)

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_input_embeddings().num_embeddings)

    def serves_head(self, name: str) -> bool:
        """Whether a checkpoint tensor belongs to the output head itself."""
        output = self.model.get_output_embeddings()
        return any(module is output for module, _ in self._places.get(self._map.alone.get(name, ""), ()))

    def of_embedding(self) -> list[nn.Module]:
        """The modules that weights of the embedding's part belong to."""
        targets = [self._map.group_of[name].target for name in self._early if name in self._map.group_of]
        return [module for target in targets for module, _ in self._places.get(target, ())]

    def linear_weights(self, part: Part) -> dict[str, nn.Module]:
        """Checkpoint name -> module, of every linear layer whose weight belongs to the part and to no other block.

        Of a tensor that is cut into the weights of several layers, which then are given the same, the first of them.
        """
        lent = {name for names in self.borrowed.values() for name in names}
        found = {}
        for group in self._groups(part.tensors):
            alone = group.converter is None or (len(group.members) == 1 and len(group.targets) > 1)
            if not alone or group.members[0] in lent:
                continue
            for module, attribute in self._places.get(group.target, ()):
                if isinstance(module, nn.Linear | Conv1D) and attribute == "weight":
                    found[group.members[0]] = module
        return found

    def expert_weights(self, part: Part) -> list[tuple[str, Place]]:
        """Checkpoint names of the matrices of the part's experts, with what they fill; the part must be installed."""
        found: list[tuple[str, Place]] = []
        for group in self._groups(part.tensors):
            if group.converter is not None:
                shapes = {name: tuple(self._stacked[name].shape) for name in group.members}
                found += places_of_experts(group, shapes, self.model).items()
            elif self._is_of_experts(group.target):
                found.append((group.members[0], Place(parameter=group.target, expert=None)))
        return found

    def parameter(self, name: str) -> torch.Tensor:
        """A parameter as it stands in the model now."""
        value: torch.Tensor = getattr(*self._places[name][0])
        return value.detach()

    def _lent_to(self, part: Part) -> Part:
        """What a block computes with and other parts store, as a part of its number; mostly without tensors."""
        names = self.borrowed.get(part.index, ()) if part.kind is PartKind.BLOCK else ()
        return replace(part, tensors=names)

    def enter(self, part: Part, weights: Weights) -> None:
        """Put in all that a part computes with: what it borrows, and its own original weights."""
        if (lent := self._lent_to(part)).tensors:
            self.install(weights(lent))
        self.install(weights(part))

    def install(self, tensors: Mapping[str, torch.Tensor], *, passing: bool = False) -> None:
        """Put tensors (checkpoint name -> any float dtype) into their modules, as float32 on the device.

        Tensors that fill a parameter together (experts) are put in once all of them are there. Names that the model
        has no place for (rotary tables that old checkpoints store) are passed over, and towers that no text passes through.
        passing: a variant's, or the original ones after it: what was stacked first stays known, and those that fill a
        parameter together come together.
        """
        self._weightless = None
        stacked = dict(self._stacked) if passing else self._stacked
        together: dict[str, Group] = {}
        for name in tensors:
            group = self._map.group_of.get(name)
            if group is None or name in self._towers:
                continue
            tensor = tensors[name]
            if group.converter is None:
                self._put(group.target, tensor)
            else:
                stacked[name] = tensor.to(self.device)
                together[group.target] = group
        for group in together.values():
            if all(name in stacked for name in group.members):
                self._empty(group)  # first, so that its old weights make room for the new ones
                for target, value in group.convert(stacked, self.model).items():
                    self._put(target, value)

    def installed(self, name: str) -> torch.Tensor | None:
        """The tensor that stands in the model now under a checkpoint name."""
        target = self._map.alone.get(name)
        return self.parameter(target) if target else self._stacked.get(name)

    def together(self, names: Iterable[str]) -> list[list[str]]:
        """The names in the groups that have to be exchanged at once."""
        groups: dict[str, list[str]] = {}
        for name in names:
            group = self._map.group_of.get(name)
            if group is not None:
                groups.setdefault(group.target, []).append(name)
        return list(groups.values())

    def remove(self, part: Part) -> None:
        """Take out again all that a part computes with, and free its memory; buffers stay."""
        self._weightless = None
        for group in self._groups((*part.tensors, *self._lent_to(part).tensors)):
            for name in group.members:
                self._stacked.pop(name, None)
            self._empty(group)

    def _empty(self, group: Group) -> None:
        for module, attribute in [place for target in group.targets for place in self._places.get(target, ())]:
            if attribute in module._parameters:
                _set(module, attribute, torch.empty_like(getattr(module, attribute), device="meta"))

    def _hollow(self) -> list[nn.Module]:
        """The modules whose weights are not there now, but for what is around the blocks and has weights of its own."""
        if self._weightless is None:
            base = self.model.base_model
            modules = [module for module in self.model.modules() if module not in (self.model, base)]
            self._weightless = [
                module
                for module in modules
                if any(value.is_meta for value in module._parameters.values() if value is not None)
            ]
        return self._weightless

    def _groups(self, names: Iterable[str]) -> list[Group]:
        found = {group.target: group for name in names if (group := self._map.group_of.get(name)) is not None}
        return list(found.values())

    def _put(self, target: str, value: torch.Tensor) -> None:
        for module, attribute in self._places.get(target, ()):
            _set(module, attribute, value.to(self.device, torch.float32))

    def _is_of_experts(self, target: str) -> bool:
        """Whether a parameter holds one matrix for each of several experts."""
        module, attribute = self._places[target][0]
        return getattr(module, attribute).ndim == 3 and attribute in module._parameters and holds_experts(module)


def _largest(model: PreTrainedModel, blocks: nn.ModuleList) -> int:
    """Weights of the largest block or of the embedding, whichever has more."""
    parts = [*blocks, model.get_input_embeddings()]
    return int(max(sum(parameter.numel() for parameter in part.parameters()) for part in parts))


def _towers(model: PreTrainedModel, parts: tuple[Part, ...]) -> frozenset[str]:
    """Of a model that sees images, the tensors that by their names only images and sounds pass through: they stay on the disk."""
    if not any(map(sees_images, model.config.architectures or ())):
        return frozenset()
    first = next(part for part in parts if part.kind is PartKind.EMBEDDING)
    return frozenset(filter(in_tower, first.tensors))


def _places(model: PreTrainedModel) -> dict[str, list[tuple[nn.Module, str]]]:
    """Parameter or buffer of the model's state -> the modules and attributes that hold it; a tied weight has several."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                owners.setdefault(id(value), []).append((module, attribute))
    parameters = {**dict(model.named_buffers()), **dict(model.named_parameters(remove_duplicate=False))}
    return {name: owners[id(value)] for name, value in parameters.items()}


def _set(module: nn.Module, attribute: str, value: torch.Tensor) -> None:
    if attribute in module._parameters:
        module._parameters[attribute] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[attribute] = value


def _use_matrix_units(model: PreTrainedModel) -> None:
    """Let the linear layers multiply in TF32, and nothing else: a rotary table in it would be far off.

    docs/numbers.md has what this does to the numbers.
    """

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda *_: allow_tf32(True))
            module.register_forward_hook(lambda *_: allow_tf32(False), always_call=True)


def _to_device(model: PreTrainedModel, device: torch.device) -> None:
    """Buffers (rotary tables) go to the device; parameters stay on meta until they are installed."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
