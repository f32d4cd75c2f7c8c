"""What a checkpoint stores, compared with the model that its config.json describes.

transformers builds that model without weights. Where the two disagree it would cut, fill up with random numbers or
leave out in silence, and every runtime in its own way; so each disagreement is refused by name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from hubbot.errors import SourceRefused
from hubbot.model.absent import absent_part_of, absent_parts
from hubbot.model.empty import build_model, is_tied
from hubbot.model.mapping import CheckpointMap, Group, map_checkpoint
from hubbot.model.parts import PartKind, part_layout_of
from hubbot.model.rotation import rotated_whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hubbot.model import ModelFacts
    from hubbot.model.safetensors import TensorInfo

__all__ = ["agreed", "refuse_gaps"]

_FLOATS = frozenset({"F32", "F16", "BF16"})
_WEIGHTS = (".weight", ".bias")
_ADAPTER = re.compile(r"\.lora_[A-Za-z_]+(\.|$)")  # PEFT's names
_COMPUTED = re.compile(r"(inv_freq|masked_bias|(cos|sin)_cached)$")


def agreed(facts: ModelFacts) -> ModelFacts:
    """The facts, with what only the built model knows; reads config.json and the tensors' names and shapes.

    Raises SourceRefused naming the tensor, what is stored and what config.json asks for; Unsupported where
    transformers cannot build the model.
    """
    model = build_model(facts.folder)
    checkpoint = map_checkpoint(model, facts.tensors)
    places = checkpoint.alone
    _refuse_twice(places)
    _refuse_adapters([name for name in facts.tensors if name not in checkpoint.group_of])
    _refuse_shapes(model, checkpoint, facts)
    refuse_gaps(model, checkpoint, facts.tensors)
    unused = _unused(model, checkpoint.group_of, facts)
    notes = (*facts.notes, *_absent(model, facts), *_notes_on(unused, model, facts), *_on_rotation(model, facts))
    return replace(facts, tied=is_tied(model), twins=_twins(model, places), unused=unused, notes=notes)


def _on_rotation(model: PreTrainedModel, facts: ModelFacts) -> Iterator[str]:
    if share := rotated_whole(model):
        yield (
            f"config.json asks for rotary positions of {share:g} of each head (partial_rotary_factor), and transformers' {facts.architecture} "
            "rotates all of it: so it is measured; vLLM may go by the key"
        )


def _twins(model: PreTrainedModel, places: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Pairs of stored tensors that are one parameter of the model: a tied head and its embedding, both stored."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    pairs = [
        (first.setdefault(id(parameters[place]), name), name) for name, place in places.items() if place in parameters
    ]
    return tuple(pair for pair in pairs if pair[0] != pair[1])


def _refuse_twice(places: Mapping[str, str]) -> None:
    """Two stored tensors for one parameter: which is taken depends on the reader."""
    first: dict[str, str] = {}
    for name, place in places.items():
        if first.setdefault(place, name) != name:
            msg = f"{first[place]} and {name} are both stored for {place} of the model, and readers differ in which they take. Remove the one that is not meant from a copy of the model."
            raise SourceRefused(msg)


def _refuse_adapters(strays: Iterable[str]) -> None:
    """Matrices beside those of the layers that they change; whoever leaves them out computes another model."""
    if found := [name for name in strays if _ADAPTER.search(name)]:
        msg = (
            f"{found[0]} is of an adapter (LoRA) that was not merged into the weights ({len(found)} tensors in all). "
            "Merge it (merge_and_unload of PEFT), save the model, and give that."
        )
        raise SourceRefused(msg)


def _refuse_shapes(model: PreTrainedModel, checkpoint: CheckpointMap, facts: ModelFacts) -> None:
    wanted = model.state_dict()
    for group in checkpoint.groups:
        if group.converter is not None:
            _refuse_shape_together(model, group, facts)
            continue
        name, needed = group.members[0], wanted[group.target]
        info = facts.tensors[name]
        if info.shape != tuple(needed.shape):
            keys = _keys(facts.config, set(needed.shape) - set(info.shape))
            msg = (
                f"{name} is stored with the shape {list(info.shape)}; config.json{keys} describes {list(needed.shape)}. "
                "The weights are of another model than config.json, or one of them was changed alone: "
                "correct config.json in a copy of the model, or ask the author."
            )
            raise SourceRefused(msg)
        if needed.is_floating_point() and info.dtype not in _FLOATS:
            msg = f"{name} is stored as {info.stored}; F64, F32, F16 or BF16 is needed. The model seems to be quantized already: give the original."
            raise SourceRefused(msg)


def _refuse_shape_together(model: PreTrainedModel, group: Group, facts: ModelFacts) -> None:
    """The same of tensors that fill a parameter together, as experts do: put together without their data."""
    hollow = {name: torch.empty(facts.tensors[name].shape, device="meta") for name in group.members}
    wanted = model.state_dict()
    for target, value in group.convert(hollow, model).items():
        if target in wanted and value.shape != wanted[target].shape:
            msg = (
                f"{group.members[0]} and {len(group.members) - 1} more tensors come to the shape {list(value.shape)}; config.json "
                f"describes {list(wanted[target].shape)} for {target}. The weights are of another model than config.json, or "
                "one of them was changed alone: correct config.json in a copy of the model, or ask the author."
            )
            raise SourceRefused(msg)


def _keys(config: Mapping[str, Any], sizes: Set[int]) -> str:
    """The key of config.json that gives such a size, rows of a vocabulary first: ` (vocab_size 512)`."""
    text = {"vocab_size": None, **config.get("text_config", config)}
    found = next((key for key, value in text.items() if type(value) is int and value in sizes), None)
    return f" ({found} {text[found]})" if found else ""


def refuse_gaps(model: PreTrainedModel, checkpoint: CheckpointMap, stored: Iterable[str] = ()) -> None:
    """Raise SourceRefused for parameters that no stored tensor fills; transformers would take random numbers.

    stored: names of all tensors, of which those that fill nothing are told beside the gaps.
    """
    places = checkpoint.alone
    parameters = dict(model.named_parameters(remove_duplicate=False))
    filled = {id(parameters[place]) for place in checkpoint.filled if place in parameters}
    spared = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    missing = [
        name
        for name, value in parameters.items()
        if id(value) not in filled and not any(pattern.search(name) for pattern in spared)
    ]
    _refuse_untied_head(model, missing, places)
    _refuse_lone_head(model, places)
    if missing:
        beside = _left_over([name for name in stored if name not in checkpoint.group_of], missing)
        msg = (
            f"The checkpoint has no weights for {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''} "
            f"({len(missing)} of {len(parameters)} tensors).{beside} A complete checkpoint is needed: "
            "check that all shards are there, that config.json belongs to them, and that names are as transformers saves them."
        )
        raise SourceRefused(msg)


def _left_over(names: Sequence[str], missing: Sequence[str]) -> str:
    """What a checkpoint with gaps stores and the model has no place for: whole, but for a word before each name, or by its first."""
    if not names:
        return ""
    before = next((names[0].removesuffix(name) for name in missing if names[0].endswith(f".{name}")), None)
    if before and {*missing} <= {name.removeprefix(before) for name in names if name.startswith(before)}:
        return f" They are stored under names that begin with {before}, which a trainer put there: take that off in a copy of the model."
    return f" What it stores and the model has no place for begins with {names[0]}."


def _refuse_untied_head(model: PreTrainedModel, missing: Sequence[str], places: Mapping[str, str]) -> None:
    """A tied model whose config.json does not say so."""
    head, embedding = _head_and_embedding(model)
    if head is not None and head in missing and embedding in places.values():
        msg = (
            f"No {head} is stored, and config.json does not say that the head is the embedding: tie_word_embeddings is "
            f"{str(_ties(model)).lower()}, so transformers would make up a random head. Set tie_word_embeddings to true in a copy of the "
            "model if it shares them, or get the checkpoint whole."
        )
        raise SourceRefused(msg)


def _refuse_lone_head(model: PreTrainedModel, places: Mapping[str, str]) -> None:
    """A tied model that stores its matrix as the head alone, where llama.cpp and vLLM look for the embedding."""
    head, embedding = _head_and_embedding(model)
    if is_tied(model) and head in places.values() and embedding not in places.values():
        msg = f"The head is tied to the embedding (tie_word_embeddings) and only {head} is stored, where most runtimes look for {embedding}. Load the model with transformers, save it again, and give that."
        raise SourceRefused(msg)


def _head_and_embedding(model: PreTrainedModel) -> tuple[str | None, str | None]:
    """Names of the weights of the output head and of the embedding."""
    paths = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    return paths.get(id(model.get_output_embeddings())), paths.get(id(model.get_input_embeddings()))


def _ties(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))


def _unused(model: PreTrainedModel, places: Mapping[str, Group], facts: ModelFacts) -> tuple[str, ...]:
    """Stored tensors that the model has no place for; those of prediction blocks and of absent parts are told apart.

    Not the weights that the model's class expects and passes over: llama.cpp asks for them (Gemma 3n's keys of layers that share others').
    """
    absent, known = absent_parts(model), _passed_over(model)
    return tuple(
        name
        for name in facts.tensors
        if name not in places and name not in facts.prediction and absent_part_of(name, absent) is None
        if not (name.endswith(".weight") and any(pattern.search(name) for pattern in known))
    )


def _passed_over(model: PreTrainedModel) -> list[re.Pattern[str]]:
    return [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]


def _notes_on(unused: Sequence[str], model: PreTrainedModel, facts: ModelFacts) -> tuple[str, ...]:
    """A note on stored numbers that no parameter takes; raises SourceRefused for a weight of a block, or of another module of the model."""
    known = _passed_over(model)
    strays = [
        name
        for name in unused
        if _is_learned(name, facts.tensors[name]) and not any(pattern.search(name) for pattern in known)
    ]
    parts = part_layout_of(facts.tensors, facts.layers)
    blocks = {name for part in parts if part.kind is PartKind.BLOCK for name in part.tensors}
    modules = {name.removeprefix(f"{model.base_model_prefix}.") for name, _ in model.named_modules()}
    weights = [name for name in strays if name.endswith(_WEIGHTS)]
    inside = [name for name in weights if name in blocks or _module(name, model) in modules]
    if inside:
        msg = (
            f"{inside[0]} is stored, and the model that config.json describes has no such weight ({len(inside)} in all): "
            "transformers would leave it out in silence and compute another model than the one that was trained. "
            "Correct config.json in a copy of the model (a bias has a key of its own, such as attention_bias)."
        )
        raise SourceRefused(msg)
    if not strays:
        return ()
    some = f"{strays[0]} and {len(strays) - 1} more tensors are" if len(strays) > 1 else f"{strays[0]} is"
    return (f"{some} stored but no part of the model that config.json describes; not measured, and in no GGUF file",)


def _module(name: str, model: PreTrainedModel) -> str:
    """Whose weight a tensor is, by the checkpoint's name without the prefix that some leave out."""
    return name.removeprefix(f"{model.base_model_prefix}.").rpartition(".")[0]


def _is_learned(name: str, info: TensorInfo) -> bool:
    """Whether a tensor may have been trained: not a mask, a table of positions or a number that follows from config.json."""
    return info.dtype in _FLOATS and info.count > 0 and len(info.shape) <= 2 and not _COMPUTED.search(name)


def _absent(model: PreTrainedModel, facts: ModelFacts) -> tuple[str, ...]:
    """A note on every part that the model was built without."""
    absent = absent_parts(model)
    counts = Counter(absent_part_of(name, absent) for name in facts.tensors)
    return tuple(
        f"{path} was not run, and nothing is said of it: {part.wants}; its {counts[path]} tensors go into folders as they are"
        for path, part in absent.items()
    )
