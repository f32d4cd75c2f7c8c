"""What a set of GGUF variants will be, exactly, before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from hubbot.domain import HESSIAN_SUFFIX, Gguf, Source, TextRecord
from hubbot.errors import Unsupported
from hubbot.formats.gguf.blocks import LAYOUTS
from hubbot.formats.gguf.codec import BF16, F16, F32, MXFP4
from hubbot.formats.gguf.converter import Converted, TensorFact, convert
from hubbot.formats.gguf.layout import Shard, lay_out
from hubbot.formats.gguf.metadata import file_metadata, imatrix_keys
from hubbot.formats.gguf.recipe import Recipe, ask_recipes
from hubbot.formats.gguf.rehearsal import rehearsed, taught, with_templates
from hubbot.formats.protocol import Cost
from hubbot.model.own_tokenizer import load_tokenizer, names_of, read_chat
from hubbot.settings import GgufSettings

__all__ = ["Facts", "GgufPlan", "VariantPlan", "costs_of", "plan_files", "window_notes"]

_PLAIN = ("F32", "F16", "BF16")


class Facts(Protocol):
    """What the GGUF family needs to know of a snapshot (intake's ModelFacts)."""

    @property
    def folder(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, TensorFact]: ...

    @property
    def config(self) -> Mapping[str, Any]: ...  # config.json

    @property
    def prediction(self) -> Collection[str]: ...  # tensors of prediction blocks

    @property
    def chat_templates(self) -> Mapping[str, str]: ...  # name -> template


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantPlan:
    """The files of one variant."""

    name: str
    recipe: Recipe
    shards: tuple[Shard, ...]
    importance: bool  # whether its encoder gets the importance matrix
    hessian: bool = False  # whether codes and scales are chosen by the whole Hessian

    def rounds(self, kind: int) -> bool:
        """Whether a tensor of this type is rounded by its Hessian, where one is known."""
        return self.hessian and kind in LAYOUTS

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of how it was rounded."""
        plain = self.name.removesuffix(HESSIAN_SUFFIX)
        told = f"types and bytes of {plain}, but scales and codes chosen by what each error does to the outputs of its layer on the calibration text, not by its size"
        return (told,) if self.hessian else ()

    @property
    def weight_bytes(self) -> int:
        return sum(placed.bytes for shard in self.shards for placed in shard.tensors)

    @property
    def file_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufPlan:
    model: Converted
    variants: Mapping[str, VariantPlan]
    refused: Mapping[str, Unsupported]  # those that llama.cpp has no recipe for
    imatrix_file: str | None  # its name, where one is used


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
    model = _converted(facts, read, source.name)
    model = replace(model, metadata=with_templates(model.metadata, facts.chat_templates))
    folder = Path(facts.folder)
    tokenizer = load_tokenizer(folder)
    chat = read_chat(folder, tokenizer)
    model = taught(model, chat.tokens, rehearsed(model, chat, names_of(tokenizer), work))
    file = f"{source.name}.imatrix" if imatrix else None
    guessed = entries if entries is not None else _matrices_in_blocks(model)
    planned: dict[str, VariantPlan] = {}
    refused: dict[str, Unsupported] = {}
    by_type = {variant.type: variant for variant in variants}
    for weighed in (False, True):
        names = [v.type for v in by_type.values() if (imatrix is not None and v.type not in _PLAIN) is weighed]
        recipes = ask_recipes(model, names, work, imatrix=weighed) if names else {}
        keys = imatrix_keys(file, imatrix, guessed) if weighed and imatrix and file else {}
        for name, recipe in recipes.items():
            if isinstance(recipe, Unsupported):
                refused[name] = recipe
                continue
            if name == "MXFP4_MOE" and MXFP4 not in recipe.kinds.values():
                refused[name] = _without_experts(source.name)
                continue
            shards = _lay_out(model, name, recipe, source, quantized_by, keys, settings)
            planned[name] = VariantPlan(name=name, recipe=recipe, shards=shards, importance=weighed)
    ordered = {
        variant.name: replace(planned[variant.type], name=variant.name, hessian=variant.hessian)
        for variant in variants
        if variant.type in planned and (imatrix is not None or not variant.hessian)
    }
    left = {
        variant.name: refused.get(variant.type) or _static(variant)
        for variant in variants
        if variant.name not in ordered
    }
    return GgufPlan(model=model, variants=ordered, refused=left, imatrix_file=file)


def _without_experts(name: str) -> Unsupported:
    msg = f"llama-quantize rounds the experts alone in MXFP4_MOE and all else as in Q8_0, and {name} has no experts. Take Q8_0."
    return Unsupported(msg)


def _static(variant: Gguf) -> Unsupported:
    msg = (
        f"{variant.name} is rounded by what the calibration text shows, and this run makes static files. Leave out "
        f"--no-imatrix (gguf.imatrix = true), or take {variant.type}."
    )
    return Unsupported(msg)


def _converted(facts: Facts, read: Callable[[str], torch.Tensor], name: str) -> Converted:
    """The converted model; without its prediction blocks where the converter has no place for them."""
    folder = Path(facts.folder)
    try:
        return convert(folder, facts.tensors, read, name=name)
    except Unsupported:
        if not facts.prediction:
            raise
    kept = {key: fact for key, fact in facts.tensors.items() if key not in facts.prediction}
    return convert(folder, kept, read, name=name)


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
        )
        for name, variant in plan.variants.items()
    }


def window_notes(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """A note where the model's attention slides over the text, and the converter has no key for it in this architecture."""
    text = config.get("text_config", config)
    window, kinds = text.get("sliding_window"), text.get("layer_types") or ["sliding_attention"]
    slides = type(window) is int and text.get("use_sliding_window", True) and "sliding_attention" in kinds
    if not slides or any(key.endswith(".attention.sliding_window") for key in metadata):
        return ()
    return (
        f"the model looks at the last {window:,} tokens (sliding_window), and llama.cpp's converter writes no window for its "
        "architecture: llama.cpp looks at the whole text, so that longer texts come out otherwise",
    )


def _matrices_in_blocks(model: Converted) -> int:
    """How many matrices an importance matrix usually covers: those of the blocks."""
    return sum(tensor.name.startswith("blk.") and tensor.rows > 1 for tensor in model.tensors)


def is_lossless(kind: int, converted: int) -> bool:
    """Whether a tensor of this type holds the converted file's values exactly."""
    return kind == F32 or (kind == converted and kind in (F16, BF16))
