"""A causal language model of which one part at a time has weights.

transformers builds the model on the meta device; a part's tensors are put in when its turn comes and
taken out afterwards. No architecture is known here by name: the model's own forward is run once with
stand-ins in place of the decoder blocks, which note the arguments that each block is given. Windows
have one length and no padding, so these arguments (masks, rotary tables) hold for every window.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hubbot.errors import Unsupported
from hubbot.kernels.products import allow_tf32
from hubbot.model.agreement import refuse_gaps
from hubbot.model.architectures import sees_images
from hubbot.model.empty import build_model, decoder_blocks, is_tied
from hubbot.model.foreign import foreign
from hubbot.model.mapping import CheckpointMap, Group, Place, map_checkpoint, places_of_experts
from hubbot.model.parts import Part, PartKind, in_tower
from hubbot.sweep.attention import FusedAttention

__all__ = ["BlockArguments", "BlockModel"]


@dataclass(frozen=True, slots=True)
class BlockArguments:
    """What a model's forward hands to one decoder block besides the hidden states."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


class _Stop(Exception):
    pass


Output: TypeAlias = Callable[[torch.Tensor], Any]

# What decoder blocks are seen to return: hidden states alone, or with attention weights and a cache that are not there.
_OUTPUTS: tuple[Output, ...] = (
    lambda hidden: hidden,
    lambda hidden: (hidden,),
    lambda hidden: (hidden, None),
    lambda hidden: (hidden, None, None),
)


class BlockModel:
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
        self.blocks = _blocks(self.model, parts, self._map)
        self.largest_part = _largest(self.model, self.blocks)
        self._places = _places(self.model)
        self._towers = _towers(self.model, parts)
        self._weightless: list[nn.Module] | None = None  # None: not looked for since a part came or went
        self._stacked: dict[str, torch.Tensor] = {}  # tensors that fill a parameter only together, as they came
        self.tied = is_tied(self.model)  # the output head is the embedding: its tensors serve both
        self._output: Output = _OUTPUTS[0]  # found out by `arguments`
        _to_device(self.model, device)
        if device.type == "cuda":
            _use_matrix_units(self.model)

    @property
    def hidden_size(self) -> int:
        return int(self.model.get_input_embeddings().embedding_dim)

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_input_embeddings().num_embeddings)

    def linear_weights(self, part: Part) -> dict[str, nn.Module]:
        """Checkpoint name -> module, of every linear layer whose weight belongs to the part."""
        found = {}
        for name in part.tensors:
            for module, attribute in self._places.get(self._map.alone.get(name, ""), ()):
                if isinstance(module, nn.Linear | Conv1D) and attribute == "weight":
                    found[name] = module
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
        """Take a part's tensors out again and free their memory; buffers stay."""
        self._weightless = None
        for group in self._groups(part.tensors):
            for name in group.members:
                self._stacked.pop(name, None)
            self._empty(group)

    def _empty(self, group: Group) -> None:
        for module, attribute in [place for target in group.targets for place in self._places.get(target, ())]:
            if attribute in module._parameters:
                _set(module, attribute, torch.empty_like(getattr(module, attribute), device="meta"))

    def _hollow(self) -> list[nn.Module]:
        """The modules whose weights are not there now."""
        if self._weightless is None:
            modules = self.model.modules()
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
        value = getattr(module, attribute)
        return value.ndim == 3 and attribute in module._parameters and not isinstance(module, nn.Conv1d)

    @torch.inference_mode()
    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [batch, length] -> what the first block is given, float32 [batch, length, hidden]."""
        seen: list[torch.Tensor] = []

        def stop(hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            seen.append(hidden)
            raise _Stop

        with _stand_ins(self.blocks, lambda _: stop), contextlib.suppress(_Stop):
            self.model(input_ids=tokens.to(self.device), use_cache=False)
        return seen[0]

    @torch.inference_mode()
    def arguments(self, length: int, count: int = 1) -> list[BlockArguments]:
        """The arguments of every block for `count` windows of `length` tokens at once; needs no weights."""
        told: list[str] = []
        for output in _OUTPUTS:
            self._output = output
            try:
                with foreign("transformers", "run the model without weights", then="", kind=Unsupported):
                    return self._note_arguments((count, length, self.hidden_size), 0.0)
            except Unsupported as error:
                told.append(str(error).strip())
        raise self._unwalkable(told[0])

    def refuse_unwalkable(self, length: int) -> None:
        """Raise Unsupported where the model cannot be walked, or where its blocks are given what depends on the text."""
        noted = self.arguments(length)
        if not all(map(_same, noted, self._note_arguments((1, length, self.hidden_size), 1.0))):
            raise self._unwalkable("What they are given changes with the text.")

    def _unwalkable(self, why: str) -> Unsupported:
        if getattr(self.model.config.get_text_config(), "hidden_size_per_layer_input", None):
            why = "Each of them is given an embedding of its own for every token (hidden_size_per_layer_input in config.json)."
        msg = (
            f"hubbot cannot walk {type(self.model).__name__} block by block, so it is not supported yet. Its blocks must take hidden "
            f"states, return them alone or first in a tuple, and be given nothing else that depends on the text. {why}"
        )
        return Unsupported(msg)

    @torch.inference_mode()
    def _note_arguments(self, shape: tuple[int, int, int], filling: float) -> list[BlockArguments]:
        """One forward with stand-ins; raises ValueError where the blocks' output was taken for something else."""
        seen: dict[int, BlockArguments] = {}

        def note(index: int) -> Callable[..., Any]:
            def stand_in(hidden: torch.Tensor, *positional: Any, **named: Any) -> Any:
                if hidden.shape != shape:
                    msg = f"a block is given {list(hidden.shape)} in place of {list(shape)}"
                    raise ValueError(msg)
                seen[index] = BlockArguments(positional, named)
                return self._output(hidden)

            return stand_in

        embedded = torch.full(shape, filling, device=self.device)
        with _stand_ins(self.blocks, note), _passed_over(self._hollow()):
            logits = self.model(inputs_embeds=embedded, use_cache=False).logits
        if logits.shape[:2] != shape[:2]:
            msg = f"the model returns {list(logits.shape)}"
            raise ValueError(msg)
        return [seen[index] for index in range(len(self.blocks))]

    @torch.inference_mode()
    def run_block(self, index: int, hidden: torch.Tensor, arguments: BlockArguments) -> torch.Tensor:
        """One block's output for float32 [batch, length, hidden]; its part must be installed."""
        with FusedAttention() if self.device.type == "cuda" else contextlib.nullcontext():
            out = self.blocks[index](hidden, *arguments.positional, **arguments.named)
        states: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return states

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the model makes of the last block's output: float32 [n, hidden] -> logits [n, vocab].

        Everything after the blocks works token by token, so any n tokens can be taken together.
        """
        rows = hidden.unsqueeze(0)
        passed: set[int] = set()

        def inject(index: int) -> Callable[..., Any]:
            def stand_in(*_: Any, **__: Any) -> Any:
                passed.add(index)
                return self._output(rows)

            return stand_in

        def refuse(module: nn.Module) -> None:
            if len(passed) == len(self.blocks):
                msg = f"{type(module).__name__} follows the decoder blocks of {type(self.model).__name__}, and its weights were taken for the embedding's. This layout is not supported yet."
                raise Unsupported(msg)

        with _stand_ins(self.blocks, inject), _passed_over(self._hollow(), refuse):
            logits: torch.Tensor = self.model(inputs_embeds=rows, use_cache=False).logits[0]
        return logits

    def reach_head(self, hidden: torch.Tensor, linears: Iterable[nn.Module]) -> None:
        """Like `head`, but the given layers are only shown their inputs: no logits are computed."""
        linears = tuple(linears)
        for linear in linears:
            linear.forward = lambda rows: rows[..., :1]
        try:
            self.head(hidden)
        finally:
            for linear in linears:
                del linear.forward


def _same(one: Any, other: Any) -> bool:
    """Whether two sets of arguments hold equal tensors in the same places; what is neither tensor nor container counts as equal."""
    match one:
        case BlockArguments():
            return _same(one.positional, other.positional) and _same(one.named, other.named)
        case torch.Tensor():
            return not one.is_meta and isinstance(other, torch.Tensor) and torch.equal(one, other)
        case dict():
            return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
        case tuple() | list():
            return len(one) == len(other) and all(map(_same, one, other))
        case _:
            return True


def _blocks(model: PreTrainedModel, parts: tuple[Part, ...], checkpoint: CheckpointMap) -> nn.ModuleList:
    blocks = [part for part in parts if part.kind is PartKind.BLOCK]
    groups = [checkpoint.group_of[name] for part in blocks for name in part.tensors if name in checkpoint.group_of]
    return decoder_blocks(model, [group.target for group in groups], len(blocks))


def _largest(model: PreTrainedModel, blocks: nn.ModuleList) -> int:
    """Weights of the largest block or of the embedding, whichever has more."""
    parts = [*blocks, model.get_input_embeddings()]
    return int(max(sum(parameter.numel() for parameter in part.parameters()) for part in parts))


def _towers(model: PreTrainedModel, parts: tuple[Part, ...]) -> frozenset[str]:
    """Of a model that sees images, the tensors that only images pass through: they stay on the disk."""
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


@contextlib.contextmanager
def _stand_ins(blocks: nn.ModuleList, make: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    for index, block in enumerate(blocks):
        block.forward = make(index)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextlib.contextmanager
def _passed_over(modules: Iterable[nn.Module], asking: Callable[[nn.Module], None] = lambda _: None) -> Iterator[None]:
    """Inside, these modules compute nothing: embeddings (of positions, of token types) give zeros, others what they get.

    asking: called with each that is run, before it.
    """
    modules = tuple(modules)
    for module in modules:
        module.forward = _nothing(module, asking)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _nothing(module: nn.Module, asking: Callable[[nn.Module], None]) -> Callable[..., torch.Tensor]:
    def forward(given: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        asking(module)
        if isinstance(module, nn.Embedding):
            return torch.zeros((*given.shape, module.embedding_dim), device=given.device)
        return given

    return forward


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
