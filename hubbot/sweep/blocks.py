"""A causal language model that is run block by block, one part at a time with weights.

No architecture is known here by name: the model's own forward is run with stand-ins in place of the
decoder blocks, which note what each block is given. Windows have one length and no padding, so most
arguments (masks, rotary tables) hold for every window; what goes with each token (per-layer embeddings)
and what one block leaves for others (keys and values) is told apart from them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.fx.experimental import _config as fx_config
from transformers import PreTrainedModel

from hubbot.errors import Unsupported
from hubbot.model.foreign import foreign
from hubbot.model.mapping import holds_experts
from hubbot.model.parts import Part
from hubbot.sweep.attention import FusedAttention
from hubbot.sweep.given import BlockArguments, Given, Key, Layout, Passable, companions_of, shared_mappings
from hubbot.sweep.hollow import passed_over, stand_ins
from hubbot.sweep.installed import InstalledModel
from hubbot.sweep.shared import handed_on, keep_returned

__all__ = ["BlockModel", "without_experts"]

_WINDOW = 16  # tokens that walk through the empty model


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


class BlockModel(InstalledModel):
    """The model of a folder, walked block by block."""

    def __init__(self, folder: Path, parts: tuple[Part, ...], device: torch.device) -> None:
        super().__init__(folder, parts, device)
        self._output: Output = _OUTPUTS[0]  # found out by `passage`
        self._ordinary = _ordinary_tokens(self.model)
        if self._towers:
            self._towers -= self._read_by_text()

    def _read_by_text(self) -> frozenset[str]:
        """Tensors of modules that a text passes too, such as Gemma 3n's embeddings of the marks around images."""
        run: set[nn.Module] = set()
        self._noted(torch.full((1, _WINDOW), self._ordinary[0]), run.add)
        places = {name: self._places.get(self._map.alone.get(name, ""), ()) for name in self._towers}
        return frozenset(name for name, held in places.items() if any(module in run for module, _ in held))

    @cached_property
    def passage(self) -> Passable:
        """What passes from block to block, found by forwards without weights. Raises Unsupported where none can be walked."""
        self._refuse_lent_experts()
        one, two = self._ordinary
        same = torch.full((1, _WINDOW), one)
        mixed = same.clone()
        mixed[:, : _WINDOW // 4] = two
        noted = self._noted(same)
        others = [self._see(tokens) for tokens in (mixed, mixed.flip(1), same.repeat(2, 1), same.repeat(1, 2))]
        layout = Layout.between(noted.hidden.shape, others[2].hidden.shape, others[3].hidden.shape)
        if layout is None:
            raise self._unwalkable(f"They are given {list(noted.hidden.shape)} for {_WINDOW} tokens.")
        try:
            companions = companions_of(noted, *others)
        except ValueError as error:
            raise self._unwalkable(str(error)) from None
        self._refuse_early(same)
        shared, handed = shared_mappings(noted.blocks), self._handed(same)
        try:
            left = self._left(shared, handed, noted) if any(shared) or any(handed) else 0
        except Unsupported as error:
            raise self._unwalkable(str(error).strip()) from None
        return Passable(layout, companions, shared, handed, left)

    @torch.inference_mode()
    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [batch, length] -> what the first block is given, float32 [batch, length, width of the stream]."""
        return self.passage.layout.rows(self._see(tokens, until=0, hollow=()).hidden)

    @torch.inference_mode()
    def companions(self, tokens: torch.Tensor) -> dict[int, torch.Tensor]:
        """int64 [batch, length] -> what else goes with the tokens through the blocks, [batch, length, width] by table."""
        given = self._see(tokens, until=len(self.blocks) - 1, hollow=())
        return {
            each.table: each.layout.rows(given.blocks[each.block].by_key()[each.key])
            for each in self.passage.companions
        }

    def arguments(self, length: int, count: int = 1) -> list[BlockArguments]:
        """The arguments of every block for `count` windows of `length` tokens at once; needs no weights."""
        _ = self.passage  # what blocks return is known then
        return self._see(torch.full((count, length), self._ordinary[0]), until=len(self.blocks) - 1).blocks

    @torch.inference_mode()
    def _noted(self, tokens: torch.Tensor, asking: Callable[[nn.Module], None] = lambda _: None) -> Given:
        """What a forward with stand-ins gives the blocks, once it is known what they have to return."""
        told: list[str] = []
        for output in _OUTPUTS:
            self._output = output
            try:
                with foreign("transformers", "run the model without weights", then="", kind=Unsupported):
                    return self._see(tokens, asking=asking)
            except Unsupported as error:
                told.append(str(error).strip())
        raise self._unwalkable(told[0])

    def _refuse_lent_experts(self) -> None:
        """Raise Unsupported where a block computes with experts of another: those are rounded where they are stored."""
        for index, names in self.borrowed.items():
            groups = self._groups(names)
            if lent := next((each for each in groups if each.converter or self._is_of_experts(each.target)), None):
                raise self._unwalkable(f"Block {index} computes with experts of another ({lent.members[0]}).")

    def _refuse_early(self, tokens: torch.Tensor) -> None:
        """Raise Unsupported where a module runs behind the blocks whose weights are taken out before them, with the embedding's."""
        before: set[nn.Module] = set()
        whole: set[nn.Module] = set()
        self._see(tokens, until=len(self.blocks) - 1, asking=before.add)
        self._see(tokens, asking=whole.add)
        late = whole - before - {self.model.get_output_embeddings()}
        if found := next((module for module in self.of_embedding() if module in late), None):
            raise self._misplaced(found)

    def _misplaced(self, module: nn.Module) -> Unsupported:
        msg = f"{type(module).__name__} follows the decoder blocks of {type(self.model).__name__}, and its weights were taken for the embedding's. This layout is not supported yet."
        return Unsupported(msg)

    def _unwalkable(self, why: str) -> Unsupported:
        msg = (
            f"hubbot cannot walk {type(self.model).__name__} block by block, so it is not supported yet. Its blocks must take hidden "
            "states, return them alone or first in a tuple, and be given nothing else that depends on the text but what goes "
            f"with each token by itself. {why}"
        )
        return Unsupported(msg)

    @torch.inference_mode()
    def _see(
        self,
        tokens: torch.Tensor,
        until: int | None = None,
        hollow: Iterable[nn.Module] | None = None,
        marks: Mapping[int, torch.Tensor] | None = None,
        asking: Callable[[nn.Module], None] = lambda _: None,
    ) -> Given:
        """One forward with stand-ins; raises ValueError where the blocks' output was taken for something else.

        until: the block that it stops at; else it goes through the head. hollow: what has no weights, if not all that is.
        marks: what the blocks return beside their hidden states, by its place. asking: called with each hollow module that is run.
        """
        hiddens: list[torch.Tensor] = []
        seen: dict[int, BlockArguments] = {}

        def note(index: int) -> Callable[..., Any]:
            def stand_in(hidden: torch.Tensor, *positional: Any, **named: Any) -> Any:
                hiddens.append(hidden)
                if hidden.shape != hiddens[0].shape:
                    msg = f"a block is given {list(hidden.shape)} in place of {list(hiddens[0].shape)}"
                    raise ValueError(msg)
                if seen.setdefault(index, given := BlockArguments(positional, named)) is not given:
                    msg = f"block {index} is run more than once"
                    raise ValueError(msg)
                if index == until:
                    raise _Stop
                out = self._output(hidden)
                return (hidden, *marks.values()) if marks else out

            return stand_in

        modules = self._hollow() if hollow is None else hollow
        logits = None
        over = passed_over(modules, asking, device=self.device)
        with stand_ins(self.blocks, note), over, contextlib.suppress(_Stop):
            logits = self.model(input_ids=tokens.to(self.device), use_cache=False).logits
        if logits is not None and logits.shape[:2] != tokens.shape:
            msg = f"the model returns {list(logits.shape)}"
            raise ValueError(msg)
        if until is None and len(seen) != len(self.blocks):
            msg = f"{len(seen)} of {len(self.blocks)} blocks were run"
            raise ValueError(msg)
        return Given(hiddens[0], [seen[index] for index in sorted(seen)])

    def _handed(self, tokens: torch.Tensor) -> tuple[dict[Key, int], ...]:
        """By block, the arguments that are what an earlier one returned beside its hidden states, found by marks in their place."""
        marks: dict[int, torch.Tensor] = {place: torch.empty(0) for place in range(1, len(_returned(self._output)))}
        try:
            with foreign("transformers", "run the model without weights", then="", kind=Unsupported):
                given = self._see(tokens, marks=marks)
        except Unsupported:  # what it does with them it does not hand on
            return tuple({} for _ in self.blocks)
        return tuple(
            {key: place for key, value in arguments.by_key().items() for place, mark in marks.items() if value is mark}
            for arguments in given.blocks
        )

    @torch.inference_mode()
    def _left(self, shared: Sequence[Iterable[Key]], handed: Sequence[Mapping[Key, int]], noted: Given) -> int:
        """Numbers a token that blocks leave for later ones: by a pass that has shapes and no data."""
        states: dict[Any, tuple[torch.Tensor, ...]] = {}
        # of a mask that chooses, as many as there may be
        whole = fx_config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]
        with whole, foreign("transformers", "run the model's blocks without weights", then="", kind=Unsupported):
            for block, arguments, keys, places in zip(self.blocks, noted.blocks, shared, handed, strict=True):
                given = arguments.replaced(dict.fromkeys(keys, states) | handed_on(places, states))
                given = given.with_tensors(lambda tensor: tensor.to("meta"))
                bare = without_experts(copy.deepcopy(block)).to("meta")
                out = bare(noted.hidden.to("meta"), *given.positional, **given.named)
                keep_returned(out, handed, states)
        tensors = [tensor for value in states.values() for tensor in value]
        return int(sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors)) // (_WINDOW * 4)

    @torch.inference_mode()
    def run_block(
        self, index: int, rows: torch.Tensor, arguments: BlockArguments, states: MutableMapping[Any, Any]
    ) -> torch.Tensor:
        """One block's output for float32 [batch, length, width of the stream]; its part must be installed.

        states: gets what it returns for later blocks.
        """
        return self.block_output(index, rows, arguments, states)

    def block_output(
        self, index: int, rows: torch.Tensor, arguments: BlockArguments, states: MutableMapping[Any, Any]
    ) -> torch.Tensor:
        """The same, of rows that may have a gradient."""
        layout = self.passage.layout
        with FusedAttention() if self.device.type == "cuda" else contextlib.nullcontext():
            out = self.blocks[index](layout.given(rows), *arguments.positional, **arguments.named)
        keep_returned(out, self.passage.handed, states)
        return layout.rows(out[0] if isinstance(out, tuple) else out)

    @torch.inference_mode()
    def head(self, rows: torch.Tensor) -> torch.Tensor:
        """What the model makes of the last block's output: float32 [n, width of the stream] -> logits [n, vocab].

        Everything after the blocks works token by token, so any n tokens can be taken together.
        """
        return self.head_output(rows)

    def head_output(self, rows: torch.Tensor) -> torch.Tensor:
        """The same, of rows that may have a gradient."""
        return self._after_blocks(rows, self._hollow())

    @torch.inference_mode()
    def reach_head(self, rows: torch.Tensor) -> None:
        """Like `head`, but the output head is only shown its inputs: no logits are computed."""
        output = self.model.get_output_embeddings()

        def stop(*_: Any, **__: Any) -> None:
            raise _Stop

        output.forward = stop  # hooks before it have seen its inputs
        try:
            with contextlib.suppress(_Stop):
                self._after_blocks(rows, [module for module in self._hollow() if module is not output])
        finally:
            del output.forward

    def _after_blocks(self, rows: torch.Tensor, hollow: Iterable[nn.Module]) -> torch.Tensor:
        hidden = self.passage.layout.given(rows.unsqueeze(0))
        passed: set[int] = set()

        def inject(index: int) -> Callable[..., Any]:
            def stand_in(*_: Any, **__: Any) -> Any:
                passed.add(index)
                return self._output(hidden)

            return stand_in

        def refuse(module: nn.Module) -> None:
            if len(passed) == len(self.blocks):
                raise self._misplaced(module)

        tokens = torch.full((1, len(rows)), self._ordinary[0], device=self.device)
        with stand_ins(self.blocks, inject), passed_over(hollow, refuse, device=self.device):
            logits: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits[0]
        return logits


def _returned(output: Output) -> tuple[Any, ...]:
    out = output(torch.empty(0))
    return out if isinstance(out, tuple) else (out,)


def _ordinary_tokens(model: PreTrainedModel) -> tuple[int, int]:
    """Two that config.json names for nothing special, such as the place of an image."""
    configs = (model.config, model.config.get_text_config())
    named = {value for config in configs for value in config.to_dict().values() if type(value) is int}
    first, second, *_ = (token for token in range(1, len(named) + 3) if token not in named)
    return first, second


def without_experts(block: nn.Module) -> nn.Module:
    """Experts sort tokens by what they hold, which a pass without data cannot; they leave their shape as it is."""
    for module in block.modules():
        if holds_experts(module):
            module.forward = lambda given, *_, **__: given
    return block
