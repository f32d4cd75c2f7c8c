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
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hubbot.errors import SourceRefused, Unsupported
from hubbot.model.empty import build_model, decoder_blocks, parameter_names
from hubbot.model.parts import Part, PartKind

__all__ = ["BlockArguments", "BlockModel"]


@dataclass(frozen=True, slots=True)
class BlockArguments:
    """What a model's forward hands to one decoder block besides the hidden states."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


class _Stop(Exception):
    pass


class BlockModel:
    """The model of a folder, built without weights.

    parts: the layout of the checkpoint (see `hubbot.model.part_layout`).
    device: where parts are computed, in float32.
    Raises Unsupported where transformers does not know the architecture or stores a block in a form
    that cannot be addressed tensor by tensor (fused experts), SourceRefused where tensors are missing.
    """

    def __init__(self, folder: Path, parts: tuple[Part, ...], device: torch.device) -> None:
        self.device = device
        self.model = build_model(folder)
        self.blocks = decoder_blocks(self.model, sum(part.kind is PartKind.BLOCK for part in parts))
        self._modules_of = _match(self.model, [name for part in parts for name in part.tensors])
        self.tied = _tied(self.model)  # the output head is the embedding: its tensors serve both
        self._returns_tuple = False  # found out by `arguments`
        _to_device(self.model, device)

    @property
    def hidden_size(self) -> int:
        return int(self.model.get_input_embeddings().embedding_dim)

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_input_embeddings().num_embeddings)

    def linear_weights(self, part: Part) -> dict[str, nn.Linear]:
        """Checkpoint name -> module, of every linear layer whose weight belongs to the part."""
        found = {}
        for name in part.tensors:
            for module, attribute in self._modules_of.get(name, ()):
                if isinstance(module, nn.Linear) and attribute == "weight":
                    found[name] = module
        return found

    def install(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put tensors (checkpoint name -> any float dtype) into their modules, as float32 on the device.

        Names that the model has no place for (rotary tables that old checkpoints store) are passed over.
        """
        for name, tensor in tensors.items():
            value = nn.Parameter(tensor.to(self.device, torch.float32), requires_grad=False)
            for module, attribute in self._modules_of.get(name, ()):
                _set(module, attribute, value)

    def installed(self, name: str) -> torch.Tensor | None:
        """The tensor that stands in the model now under a checkpoint name."""
        places = self._modules_of.get(name)
        return getattr(*places[0]).detach() if places else None

    def remove(self, part: Part) -> None:
        """Take a part's tensors out again and free their memory."""
        for name in part.tensors:
            for module, attribute in self._modules_of.get(name, ()):
                current = getattr(module, attribute)
                _set(module, attribute, nn.Parameter(torch.empty_like(current, device="meta"), requires_grad=False))

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
    def arguments(self, length: int) -> list[BlockArguments]:
        """The arguments of every block for windows of `length` tokens; needs no weights."""
        for returns_tuple in (False, True):
            self._returns_tuple = returns_tuple
            with contextlib.suppress(AttributeError, IndexError, TypeError, ValueError, RuntimeError):
                return self._note_arguments(length)
        msg = (
            f"The decoder blocks of {type(self.model).__name__} neither return hidden states nor a tuple that begins "
            "with them, so hubbot cannot walk this model block by block. It is not supported yet."
        )
        raise Unsupported(msg)

    def _note_arguments(self, length: int) -> list[BlockArguments]:
        """One forward with stand-ins; raises ValueError where the blocks' output was taken for something else."""
        seen: dict[int, BlockArguments] = {}
        shape = (1, length, self.hidden_size)

        def note(index: int) -> Callable[..., Any]:
            def stand_in(hidden: torch.Tensor, *positional: Any, **named: Any) -> Any:
                if hidden.shape != shape:
                    raise ValueError(hidden.shape)
                seen[index] = BlockArguments(positional, named)
                return self._as_block_output(hidden)

            return stand_in

        embedded = torch.zeros(shape, device=self.device)
        with _stand_ins(self.blocks, note), _without_head(self.model):
            logits = self.model(inputs_embeds=embedded, use_cache=False).logits
        if logits.shape[:2] != shape[:2]:
            raise ValueError(logits.shape)
        return [seen[index] for index in range(len(self.blocks))]

    @torch.inference_mode()
    def run_block(self, index: int, hidden: torch.Tensor, arguments: BlockArguments) -> torch.Tensor:
        """One block's output for float32 [batch, length, hidden]; its part must be installed."""
        out = self.blocks[index](hidden, *arguments.positional, **arguments.named)
        states: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return states

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the model makes of the last block's output: float32 [n, hidden] -> logits [n, vocab].

        Everything after the blocks works token by token, so any n tokens can be taken together.
        """
        rows = hidden.unsqueeze(0)

        def inject(_: int) -> Callable[..., Any]:
            return lambda *__, **___: self._as_block_output(rows)

        with _stand_ins(self.blocks, inject):
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

    def _as_block_output(self, hidden: torch.Tensor) -> Any:
        return (hidden,) if self._returns_tuple else hidden


def _tied(model: PreTrainedModel) -> bool:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return head is not None and head.weight is embedding.weight


def _match(model: PreTrainedModel, names: Iterable[str]) -> dict[str, list[tuple[nn.Module, str]]]:
    """Checkpoint name -> the modules and attributes that it fills; a tied weight has several."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, attribute))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    targets = parameter_names(model, names)
    places = {name: owners[id(parameters[target])] for name, target in targets.items() if target in parameters}
    _refuse_gaps(places, parameters, owners)
    return places


def _refuse_gaps(
    places: Mapping[str, list[tuple[nn.Module, str]]],
    parameters: Mapping[str, nn.Parameter],
    owners: Mapping[int, list[tuple[nn.Module, str]]],
) -> None:
    filled = {id(place[0]) for found in places.values() for place in found}
    missing = [name for name, value in parameters.items() if id(owners[id(value)][0][0]) not in filled]
    if missing:
        msg = (
            f"The checkpoint has no weights for {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''} "
            f"({len(missing)} of {len(parameters)} tensors). A complete checkpoint is needed: "
            "check that all shards are there and that config.json belongs to them."
        )
        raise SourceRefused(msg)


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
def _without_head(model: PreTrainedModel) -> Iterator[None]:
    """Skip what follows the blocks: while arguments are noted, the head's weights are not there."""
    skipped = [module for module in model.modules() if any(p.is_meta for p in module.parameters(recurse=False))]
    for module in skipped:
        module.forward = lambda hidden, *_, **__: hidden
    try:
        yield
    finally:
        for module in skipped:
            del module.forward


def _set(module: nn.Module, attribute: str, value: nn.Parameter) -> None:
    module._parameters[attribute] = value


def _to_device(model: PreTrainedModel, device: torch.device) -> None:
    """Buffers (rotary tables) go to the device; parameters stay on meta until they are installed."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
