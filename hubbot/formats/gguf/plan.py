"""What a set of GGUF variants will be, exactly, before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from hubbot.domain import Gguf, Source, TextRecord
from hubbot.errors import Unsupported
from hubbot.formats.gguf.allocation import ggml_name, grouped
from hubbot.formats.gguf.blocks import LAYOUTS
from hubbot.formats.gguf.codec import BF16, F16, F32, MXFP4, type_named
from hubbot.formats.gguf.converter import Converted, convert
from hubbot.formats.gguf.layout import Shard, lay_out
from hubbot.formats.gguf.metadata import file_metadata, imatrix_keys
from hubbot.formats.gguf.naming import file_stem
from hubbot.formats.gguf.otherwise import notes_on, refuse_other_experts, refuse_otherwise
from hubbot.formats.gguf.probes import matrices_of
from hubbot.formats.gguf.recipe import Recipe, ask_recipes
from hubbot.formats.gguf.rehearsal import refuse_other_texts, rehearsed, taught, with_templates
from hubbot.formats.gguf.vocabulary import with_whole_vocabulary
from hubbot.formats.protocol import Cost
from hubbot.model.own_tokenizer import load_tokenizer, names_of, read_chat, stripping
from hubbot.model.parts import PartKind, in_tower, part_layout_of
from hubbot.model.safetensors import TensorInfo
from hubbot.model.snapshot import is_head
from hubbot.settings import GgufSettings

__all__ = ["Facts", "GgufPlan", "VariantPlan", "costs_of", "plan_files"]

_PLAIN = ("F32", "F16", "BF16")


class Facts(Protocol):
    """What the GGUF family needs to know of a snapshot (intake's ModelFacts)."""

    @property
    def folder(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @property
    def config(self) -> Mapping[str, Any]: ...  # config.json

    @property
    def layers(self) -> int: ...  # decoder blocks

    @property
    def twins(
        self,
    ) -> Collection[tuple[str, str]]: ...  # tensors that are one parameter, such as a tied head and the embedding

    @property
    def prediction(self) -> Collection[str]: ...  # tensors of prediction blocks

    @property
    def unused(self) -> Collection[str]: ...  # tensors that the model has no place for

    @property
    def borrowed(self) -> Mapping[int, Sequence[str]]: ...  # block -> tensors of other parts that it computes with too

    @property
    def chat_templates(self) -> Mapping[str, str]: ...  # name -> template

    @property
    def conversation(self) -> str: ...  # as the chat template writes one


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantPlan:
    """The files of one variant."""

    name: str
    recipe: Recipe
    shards: tuple[Shard, ...]
    importance: bool  # whether its encoder gets the importance matrix
    type: str = ""  # llama-quantize's name of the mix
    hessian: bool = False  # whether codes and scales are chosen by the whole Hessian
    allocated: bool = False  # whether measured divergence gave the tensors their types
    probes: int = 0  # that have to be measured before it can be made; until then it has the plain type's recipe

    def rounds(self, kind: int) -> bool:
        """Whether a tensor of this type is rounded by its Hessian, where one is known."""
        return self.hessian and kind in LAYOUTS

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of how it was made."""
        types = (
            f"at most the bytes of {self.type}, but types given to tensors by the divergence that each was measured to cause on the calibration text"
            if self.allocated
            else f"types and bytes of {self.type}"
        )
        rounded = (
            "scales and codes chosen by what each error does to the outputs of its layer on the calibration text, not by its size"
            if self.hessian
            else ""
        )
        return (", but ".join(filter(None, (types, rounded))),) if self.allocated or self.hessian else ()

    @property
    def weight_bytes(self) -> int:
        return sum(placed.bytes for shard in self.shards for placed in shard.tensors)

    @property
    def file_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufPlan:
    model: Converted
    notes: tuple[str, ...]  # what llama.cpp computes otherwise than config.json says
    variants: Mapping[str, VariantPlan]
    refused: Mapping[str, Unsupported]  # those that llama.cpp has no recipe for
    imatrix_file: str | None  # its name, where one is used
    entries: int  # matrices that headers say it covers


def plan_files(
    variants: Sequence[Gguf],
    source: Source,
    facts: Facts,
    work: Path,
    *,
    imatrix: TextRecord | None,
    settings: GgufSettings,
    quantized_by: str | None = None,
    read: Callable[[str], torch.Tensor],
    entries: int | None = None,
) -> GgufPlan:
    """Plan the files of some variants. imatrix: the calibration text, None for static files.

    entries: how many matrices the importance matrix covers, where it is known already.
    Raises Unsupported where llama.cpp's converter cannot take the model, or llama.cpp what it makes of it.
    """
    refuse_otherwise(facts.config)
    model = _converted(facts, read, source.name)
    _refuse_lent(facts)
    refuse_other_experts(facts.config, model.metadata)
    model = replace(model, metadata=with_templates(model.metadata, facts.chat_templates))
    folder = Path(facts.folder)
    tokenizer = load_tokenizer(folder)
    model = with_whole_vocabulary(model, tokenizer)
    chat = read_chat(folder, tokenizer, facts.conversation)
    weighed = {v.type: imatrix is not None and v.type not in _PLAIN for v in variants}
    with ThreadPoolExecutor(1) as beside:  # two programs, which go by the tensors and by the tokenizer
        asked = beside.submit(_recipes, model, weighed, work)
        model = taught(model, chat.tokens, rehearsed(model, chat, work))
        refuse_other_texts(rehearsed(model, chat, work), chat, names_of(tokenizer), stripping(tokenizer))
        recipes = asked.result()
    file = f"{file_stem(source.name)}.imatrix" if imatrix else None
    guessed = entries if entries is not None else _matrices_in_blocks(model)

    def laid_out(mix: str, recipe: Recipe, weighed: bool) -> tuple[Shard, ...]:
        keys = imatrix_keys(file, imatrix, guessed) if weighed and imatrix and file else {}
        return _lay_out(model, mix, recipe, source, quantized_by, keys, settings)

    planned: dict[str, VariantPlan] = {}
    refused: dict[str, Unsupported] = {}
    for name, recipe in recipes.items():
        if not isinstance(recipe, Unsupported):
            recipe = _rounding(name, recipe, model, source.name)
        if isinstance(recipe, Unsupported):
            refused[name] = recipe
            continue
        shards = laid_out(name, recipe, weighed[name])
        planned[name] = VariantPlan(name=name, type=name, recipe=recipe, shards=shards, importance=weighed[name])
    ordered: dict[str, VariantPlan] = {}
    left: dict[str, Unsupported] = {}
    for variant in variants:
        try:
            if variant.type in refused:
                raise refused[variant.type]
            plain = planned[variant.type]
            found = _of_variant(variant, plain, settings, laid_out, static=not imatrix)
            if found.allocated and found.recipe is plain.recipe:
                found = replace(found, probes=_probes(variant, plain, model, facts))
            ordered[variant.name] = found
        except Unsupported as refusal:
            left[variant.name] = refusal
    notes = notes_on(facts.config, model.metadata, [tensor.name for tensor in model.tensors], folder)
    return GgufPlan(model=model, notes=notes, variants=ordered, refused=left, imatrix_file=file, entries=guessed)


def _recipes(model: Converted, weighed: Mapping[str, bool], work: Path) -> dict[str, Recipe | Unsupported]:
    """llama.cpp's recipe of every mix. weighed: mix -> whether it has the importance matrix."""
    found: dict[str, Recipe | Unsupported] = {}
    for imatrix in (False, True):
        names = [name for name, it in weighed.items() if it is imatrix]
        found |= ask_recipes(model, names, work, imatrix=imatrix) if names else {}
    return found


def _of_variant(
    variant: Gguf,
    plain: VariantPlan,
    settings: GgufSettings,
    laid_out: Callable[[str, Recipe, bool], tuple[Shard, ...]],
    *,
    static: bool,
) -> VariantPlan:
    """What is made of the plan of the plain type. Raises Unsupported where there is no calibration, or the types are another model's."""
    if static and (variant.hessian or variant.allocated):
        raise _static(variant)
    found = replace(plain, name=variant.name, hessian=variant.hessian, allocated=variant.allocated)
    given = settings.allocation.get(variant.type)
    if not variant.allocated or not given:
        return found
    if strange := sorted(given.keys() - plain.recipe.kinds.keys()):
        msg = f"gguf.allocation.{variant.type} names {strange[0]}, which this model's file has not. They are another model's types: leave them out, and the run measures this one's."
        raise Unsupported(msg)
    kinds = {**plain.recipe.kinds, **{tensor: type_named(ggml_name(kind)) for tensor, kind in given.items()}}
    recipe = replace(plain.recipe, kinds=kinds)
    return replace(found, recipe=recipe, shards=laid_out(variant.type, recipe, True))


def _probes(variant: Gguf, plain: VariantPlan, model: Converted, facts: Facts) -> int:
    """How many groups of matrices are to be measured. Raises Unsupported where there is nothing to give out."""
    matrices = matrices_of(model.tensors, plain.recipe.kinds, facts.tensors)
    if not matrices:
        msg = f"llama.cpp rounds no matrix of this model to a type that could be another in {variant.type}, so that {variant.name} would be the same file. Take {variant.type}."
        raise Unsupported(msg)
    return len(grouped(matrices))


def _rounding(mix: str, recipe: Recipe, model: Converted, name: str) -> Recipe | Unsupported:
    """The recipe; or why its file would not be what it is called, where llama.cpp leaves whole what the mix is for."""
    kinds = set(recipe.kinds.values())
    if mix == "MXFP4_MOE" and MXFP4 not in kinds:
        msg = f"llama-quantize rounds the experts alone in MXFP4_MOE and all else as in Q8_0, and {name} has no experts. Take Q8_0."
        return Unsupported(msg)
    if mix not in _PLAIN and kinds <= {F32, F16, BF16}:
        largest = max(model.tensors, key=lambda tensor: tensor.weights)
        msg = (
            f"llama.cpp rounds no matrix of this model in {mix}: {largest.name} has {largest.columns} columns and the others no more multiples "
            "of 32, which ggml's blocks hold, so that the file would be an F16 under another name. Take F16 or BF16."
        )
        return Unsupported(msg)
    return recipe


def _static(variant: Gguf) -> Unsupported:
    msg = (
        f"{variant.name} is rounded by what the calibration text shows, and this run makes static files. Leave out "
        f"--no-imatrix (gguf.imatrix = true), or take {variant.type}."
    )
    return Unsupported(msg)


def _converted(facts: Facts, read: Callable[[str], torch.Tensor], name: str) -> Converted:
    """The converted model; without its prediction blocks where the converter has no place for them.

    What the model itself has no place for is left out as it is everywhere: the converter refuses names that it does not know.
    """
    asked: set[str] = set()

    def noted(tensor: str) -> torch.Tensor:
        asked.add(tensor)
        return read(tensor)

    folder = Path(facts.folder)
    tensors = {key: fact for key, fact in facts.tensors.items() if key not in facts.unused}
    kept = {key: fact for key, fact in tensors.items() if key not in facts.prediction}
    try:
        model = convert(folder, tensors, noted, name=name)
    except Unsupported:
        if not facts.prediction:
            raise
        model = convert(folder, kept, noted, name=name)
    _refuse_left_out(model, facts, kept, asked)
    return model


def _refuse_lent(facts: Facts) -> None:
    """A sweep puts into every block but the one that stores them what the checkpoint has, whatever a variant makes of it."""
    for block, (name, *_) in facts.borrowed.items():
        msg = (
            f"Block {block} computes with weights that another part of the model stores ({name}). hubbot measures such weights as "
            "they are, and a GGUF type would round them. Leave the GGUF types out of --variants."
        )
        raise Unsupported(msg)


def _refuse_left_out(model: Converted, facts: Facts, tensors: Collection[str], asked: Collection[str]) -> None:
    """Raise Unsupported for a weight of a block, or a head of its own, that the converter passes over in silence.

    asked: those whose values it looked at; they may go into keys, or be another's again.
    """
    parts = part_layout_of(facts.tensors, facts.layers)
    blocks = {tensor for part in parts if part.kind is PartKind.BLOCK for tensor in part.tensors}
    held = {leaf for tensor in model.tensors for leaf in tensor.leaves}
    held |= {*asked, *(tensor for pair in facts.twins for tensor in pair)}
    lost = [
        tensor
        for tensor in tensors
        if tensor not in held and (tensor in blocks or (is_head(tensor) and not in_tower(tensor)))
    ]
    if lost:
        msg = (
            f"llama.cpp's converter leaves {lost[0]} out ({len(lost)} in all), with which the model computes: what llama.cpp runs would be "
            "another model. Leave the GGUF types out of --variants."
        )
        raise Unsupported(msg)


def _lay_out(
    model: Converted,
    name: str,
    recipe: Recipe,
    source: Source,
    quantized_by: str | None,
    keys: Mapping[str, Any],
    settings: GgufSettings,
) -> tuple[Shard, ...]:
    tensors = {tensor.name: tensor for tensor in model.tensors}
    metadata = file_metadata(model.metadata, name, source, quantized_by, keys)
    placed = [(tensors[key], kind) for key, kind in recipe.kinds.items()]
    alone = settings.first_shard == "metadata"
    return lay_out(placed, metadata, model.architecture, settings.shard_size, keys_alone=alone)


def costs_of(plan: GgufPlan) -> dict[str, Cost]:
    """Variant name -> its exact size. Bits per weight count all tensors, as llama-quantize does."""
    weights = sum(tensor.weights for tensor in plan.model.tensors)
    return {
        name: Cost(
            file_bytes=variant.file_bytes,
            weight_bytes=variant.weight_bytes,
            bits_per_weight=8 * variant.weight_bytes / weights,
            probes=variant.probes,
        )
        for name, variant in plan.variants.items()
    }


def _matrices_in_blocks(model: Converted) -> int:
    """How many matrices an importance matrix usually covers: those of the blocks."""
    return sum(tensor.name.startswith("blk.") and tensor.rows > 1 for tensor in model.tensors)


def is_lossless(kind: int, converted: int) -> bool:
    """Whether a tensor of this type holds the converted file's values exactly."""
    return kind == F32 or (kind == converted and kind in (F16, BF16))
