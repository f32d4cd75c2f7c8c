"""Which tensors of a checkpoint are weights of linear layers inside the decoder blocks, those of experts among them.

transformers builds the model without weights; its own rules say which checkpoint tensor fills which module.
So the answer needs config.json, the checkpoint's tensor names and shapes, no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hubbot.errors import Unsupported
from hubbot.formats.protocol import Encoded
from hubbot.model import ModelFacts, part_layout
from hubbot.model.empty import build_model, decoder_blocks
from hubbot.model.finite import Large
from hubbot.model.mapping import CheckpointMap, Group, map_checkpoint, places_of_experts
from hubbot.model.parts import PartKind

__all__ = ["Linear", "Linears", "find_linears", "first_large"]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: checkpoint name of its weight [out, in], and the path of its module."""

    name: str
    module: str
    out_features: int
    in_features: int
    expert: bool = False  # one of several, of which the router picks some for a token
    transposed: bool = False  # the checkpoint stores the weight [in, out], as GPT-2's does
    renamed: bool = False  # an expert's, which the model calls otherwise than the checkpoint
    own_class: bool = False  # of a class of the architecture's own, such as FalconLinear

    def upright(self, weight: torch.Tensor) -> torch.Tensor:
        """The checkpoint's weight as [out, in]."""
        return weight.t().contiguous() if self.transposed else weight

    def as_stored(self, encoded: Encoded) -> Encoded:
        """An encoded [out, in], decoding to the checkpoint's shape."""
        return _Turned(encoded) if self.transposed else encoded


@dataclass(frozen=True, slots=True)
class _Turned:
    inner: Encoded

    def decode(self) -> torch.Tensor:
        return self.inner.decode().t().contiguous()


@dataclass(frozen=True, slots=True)
class Linears:
    """blocks: the linear layers of the decoder blocks, in checkpoint order. head: None if not a tensor of its own.

    head_module: path of the output head's module, tied or not. outside: module paths of linear layers that are
    neither; every family leaves them alone.
    stacked: tensors of the checkpoint that each hold the matrices of all experts of a block.
    """

    blocks: tuple[Linear, ...]
    head: Linear | None
    head_module: str | None
    outside: tuple[str, ...]
    stacked: tuple[str, ...] = ()

    @property
    def by_name(self) -> dict[str, Linear]:
        return {linear.name: linear for linear in self.blocks}


def find_linears(facts: ModelFacts) -> Linears:
    """The linear layers of a snapshot; a header-only one will do.

    Raises Unsupported for an architecture that transformers does not know, and where the blocks keep
    weights in other forms than nn.Linear, its transposed twin Conv1D, and experts.
    """
    model = build_model(facts.folder)
    checkpoint = map_checkpoint(model, facts.tensors)
    stack = decoder_blocks(model, _in_blocks(facts, checkpoint), facts.layers)
    in_blocks = {id(module) for module in stack.modules()}
    sources = {target: name for name, target in checkpoint.alone.items()}
    head_module = model.get_output_embeddings()
    blocks, outside = [], []
    head = head_path = None
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        name = sources.get(f"{path}.weight")
        if module is head_module:
            head = _linear(name, path, module) if name and not facts.tied else None
            head_path = path
        elif id(module) not in in_blocks:
            outside.append(path)
        elif name is None:
            msg = f"No tensor of the checkpoint fills {path}. A complete checkpoint is needed: check its shards."
            raise Unsupported(msg)
        else:
            blocks.append(_linear(name, path, module))
    experts, stacked = _experts(model, stack, checkpoint, facts)
    if not blocks and not experts:
        msg = (
            f"The decoder blocks of {facts.architecture} hold no linear layers, so there is nothing that GPTQ or "
            "bitsandbytes could quantize; leave these variants out for this model."
        )
        raise Unsupported(msg)
    return Linears((*blocks, *experts), head, head_path, tuple(outside), tuple(stacked))


def _linear(name: str, path: str, module: nn.Linear | Conv1D) -> Linear:
    if isinstance(module, Conv1D):
        return Linear(name, path, module.nf, module.nx, transposed=True)
    return Linear(name, path, module.out_features, module.in_features, own_class=type(module) is not nn.Linear)


def _in_blocks(facts: ModelFacts, checkpoint: CheckpointMap) -> list[str]:
    """Parameters that the tensors of the decoder blocks fill."""
    blocks = [part for part in part_layout(facts) if part.kind is PartKind.BLOCK]
    groups = [checkpoint.group_of[name] for part in blocks for name in part.tensors if name in checkpoint.group_of]
    return [group.target for group in groups]


def _experts(
    model: PreTrainedModel, stack: nn.ModuleList, checkpoint: CheckpointMap, facts: ModelFacts
) -> tuple[list[Linear], list[str]]:
    """The matrices of experts that are tensors of their own, and the tensors that hold all experts of a block."""
    fused = _fused_parameters(model, stack)
    alone: list[Linear] = []
    stacked: list[str] = []
    for group in checkpoint.groups:
        if not fused.intersection(group.targets):
            continue
        if len(facts.tensors[group.members[0]].shape) == 2:
            alone += _matrices(group, model, facts)
        else:
            stacked += [name for name in group.members if len(facts.tensors[name].shape) == 3]
    return alone, stacked


def _fused_parameters(model: PreTrainedModel, stack: nn.ModuleList) -> frozenset[str]:
    """Names of the parameters in blocks that hold a matrix for every expert; a convolution's kernel is none."""
    inside = {id(module) for module in stack.modules() if not isinstance(module, nn.Conv1d)}
    return frozenset(
        f"{path}.{name}"
        for path, module in model.named_modules()
        if id(module) in inside
        for name, value in module.named_parameters(recurse=False)
        if value.ndim == 3
    )


def _matrices(group: Group, model: PreTrainedModel, facts: ModelFacts) -> list[Linear]:
    """The members that are one expert's matrix each. One column stands for all of them: none is moved."""
    columns = {name: facts.tensors[name].shape[-1] for name in group.members}
    shapes = {name: (*facts.tensors[name].shape[:-1], 1) for name in group.members}
    places = places_of_experts(group, shapes, model)
    return [
        Linear(
            name,
            name.removesuffix(".weight"),
            facts.tensors[name].shape[0],
            columns[name],
            expert=True,
            renamed=not _is_named_alike(name, place.parameter, place.expert),
        )
        for name, place in places.items()
        if place.expert is not None
    ]


def _is_named_alike(name: str, parameter: str, expert: int) -> bool:
    """Whether an expert's tensor has the name of the layer that GPTQModel puts in the place of the stacked parameter."""
    inside = f"{parameter.rpartition('.')[0]}.{expert}."
    return name in {f"{inside}{projection}.weight" for projection in ("gate_proj", "up_proj", "down_proj")}


def first_large(facts: ModelFacts, large: Mapping[str, Large]) -> tuple[str, Large] | None:
    """The first linear layer of the blocks that holds a value beyond float16."""
    linears = find_linears(facts).by_name
    return next(((name, found) for name, found in large.items() if name in linears), None)
