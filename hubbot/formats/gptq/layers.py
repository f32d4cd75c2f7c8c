"""The layers of a model that GPTQ may round, and under which names its tensors go into the files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from hubbot.domain import Family, Gptq
from hubbot.errors import Unsupported, UnsupportedShape
from hubbot.formats.gptq.choice import Choice, choose
from hubbot.formats.gptq.definition import GPTQMODEL_ALONE, Names, definition_of, names_for
from hubbot.formats.linears import Cut, Linear, Linears
from hubbot.model import ModelFacts
from hubbot.settings import GptqSettings

__all__ = ["Layers", "layers_of"]


@dataclass(frozen=True, kw_only=True)
class Layers:
    """head: where it is to be quantized too. names: what the files call the checkpoint's tensors. gptqmodel: whether it is
    the reader of experts."""

    linears: Linears
    head: Linear | None
    names: Names
    gptqmodel: bool

    def choose(self, layout: Gptq) -> Choice:
        """Raises UnsupportedShape for a layout that cannot hold the model, or hold it for its readers."""
        choice = choose(self.linears, layout, head=self.head, left=self.names.left, any_rows=not self.gptqmodel)
        if not self.gptqmodel:
            _refuse_undecoded(self.linears, choice, layout)
        return choice

    def name(self, tensor: str) -> str:
        """What the files call a tensor of the checkpoint, or a layer's weight."""
        return self.names.names.get(tensor, tensor)

    def note(self, choice: Choice) -> str | None:
        """For plan and record."""
        called = {**{piece.tensor: piece.name for piece in self.linears.pieces}, **self.names.names}
        if not called:
            return choice.note
        name, theirs = next(iter(called.items()))
        told = (
            f"the files call tensors as {'GPTQModel' if self.gptqmodel else 'transformers'} does, {theirs} for {name}: a reader that looks for the checkpoint's own names, "
            "as vLLM does, may not find them"
        )
        return f"{choice.note}; {told}" if choice.note else told

    @cached_property
    def held(self) -> dict[str, list[Linear]]:
        """Checkpoint tensor -> the layers in it: one, or those of all experts."""
        found: dict[str, list[Linear]] = {}
        for layer in (*self.linears.blocks, *self.linears.pieces, *([self.head] if self.head else [])):
            found.setdefault(layer.tensor, []).append(layer)
        return found

    @cached_property
    def biases(self) -> dict[str, dict[str, Cut]]:
        """Checkpoint tensor of all experts' biases -> name in the files -> where it lies."""
        found: dict[str, dict[str, Cut]] = {}
        for name, cut in self.linears.split_biases.items():
            found.setdefault(cut.tensor, {})[name] = cut
        return found

    def plain(self, tensor: str, weight: torch.Tensor, choice: Choice) -> dict[str, torch.Tensor]:
        """Name in the files -> what of a checkpoint tensor is not rounded."""
        if tensor in self.biases:
            return {name: cut.of(weight).contiguous() for name, cut in self.biases[tensor].items()}
        if tensor not in self.held:
            return {self.name(tensor): weight}
        return {
            self.name(layer.name): layer.upright(weight) if layer.cut else weight
            for layer in self.held[tensor]
            if layer.name not in choice.rounded
        }


def layers_of(linears: Linears, facts: ModelFacts, family: Family, settings: GptqSettings) -> Layers:
    """What folders of a family round. GPTQ's are read by GPTQModel, which splits stacks of experts and takes transposed layers
    and a head; others' readers take an expert's matrix by the checkpoint's own name.

    Raises Unsupported for a model that they could not read.
    """
    gptqmodel = family is Family.GPTQ
    head = gptqmodel and settings.lm_head
    _refuse_experts(linears, family, gptqmodel=gptqmodel)
    if gptqmodel:
        _refuse_timm(linears)
    if head and linears.head is None:
        msg = (
            "gptq.lm_head asks for a quantized output head, but this model's head is its embedding. "
            "Leave gptq.lm_head out of hubbot.toml."
        )
        raise Unsupported(msg)
    names = Names(names={}, left=())
    if gptqmodel and (head or _is_gptqmodels(linears, facts)):
        names = names_for(linears, list(facts.tensors), definition_of(facts.folder))
    return Layers(linears=linears, head=linears.head if head else None, names=names, gptqmodel=gptqmodel)


def _is_gptqmodels(linears: Linears, facts: ModelFacts) -> bool:
    """Whether no other reader takes the files, so that they need its names."""
    experts = any(linear.expert for linear in (*linears.blocks, *linears.pieces))
    return bool(linears.taken) or experts or facts.model_type in GPTQMODEL_ALONE


def _refuse_timm(linears: Linears) -> None:
    if linears.timm:
        msg = (
            f"{linears.timm} is a model of timm's, at which optimum stops, by which transformers reads GPTQ: it asks every module for all that "
            "its class names, and supports_pp_plan of such a part raises AttributeError. Leave GPTQ variants out for this model, "
            "or make w4a16-128g: the same codes in a layout that transformers reads without optimum."
        )
        raise Unsupported(msg)


def _refuse_undecoded(linears: Linears, choice: Choice, layout: Gptq) -> None:
    """What transformers fails at, or computes otherwise, where it decodes codes while it puts tensors together."""
    plain = next((name for name in linears.joined if name not in choice.rounded), None)
    if plain:
        msg = (
            f"transformers, which reads these files, puts {plain} together with other tensors, which it can do of codes alone "
            "while it decodes any. Leave compressed-tensors variants out for this model."
        )
        raise UnsupportedShape(msg)
    cut = next((piece.tensor for piece in linears.pieces if not piece.expert), None)
    if cut and not layout.symmetric:
        msg = (
            f"transformers, which reads these files, cuts {cut} into several layers. It decodes no codes of such a model while it "
            "loads, and stops at packed zero points. Leave -asym out of the variant's name for this model."
        )
        raise UnsupportedShape(msg)
    if linears.joined and not layout.symmetric:
        msg = (
            "transformers, which reads these files, decodes experts without their zero points. "
            "Leave -asym out of the variant's name for this model."
        )
        raise UnsupportedShape(msg)


def _refuse_experts(linears: Linears, family: Family, *, gptqmodel: bool) -> None:
    """Those that cannot be split into a matrix for each, and what another reader than GPTQModel does not take."""
    split = {piece.tensor for piece in linears.pieces} if gptqmodel else set()
    if whole := [name for name in linears.stacked if name not in split]:
        why = "in a way that cannot be split into" if gptqmodel else "which has no names for"
        msg = (
            f"The checkpoint stores all experts of a block as one tensor ({whole[0]}), {why} a matrix for each, as the readers "
            f"of {family} want them. Leave its variants out for this model."
        )
        raise Unsupported(msg)
    odd = next((linear for linear in linears.blocks if linear.transposed), None)
    if odd and not gptqmodel:
        msg = (
            f"No reader was seen to take transposed layers (Conv1D) such as {odd.name} in {family}. "
            "Leave its variants out for this model."
        )
        raise Unsupported(msg)
