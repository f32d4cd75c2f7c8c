"""config.json of a model: the few fields that hubbot reads, checked for type and range.

What is not read here is not checked here: transformers and llama.cpp get the whole file, inside the
confined process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hubbot.errors import UnsafeSource, Unsupported
from hubbot.model.architectures import class_of, classes_of, known_to_transformers, other_purpose
from hubbot.model.released import Release, read_release, unquantized
from hubbot.model.strict_json import object_of, read_object

__all__ = ["ModelConfig", "alike_at_all_distances", "read_config", "read_values", "text_part", "without_null_sections"]

_LARGEST = 4 * 2**20  # bytes; configs with a thousand labels have 100 KB
_RELEASE = re.compile(r"[0-9][0-9A-Za-z.]{0,30}")
_BOUND = re.compile(
    r"window(?!_layers)|chunk|sliding"
)  # in a key: of how far attention looks; not of how many layers do
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,99}")

# What a number means -> its names in the configurations of transformers, and the greatest honest value.
_LAYERS = (("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2_000)
_HIDDEN = (("hidden_size", "n_embd", "d_model", "dim"), 2**20)
_HEADS = (("num_attention_heads", "n_head", "n_heads", "num_heads"), 2**16)
_KV_HEADS = (("num_key_value_heads", "n_head_kv", "num_kv_heads"), 2**16)
_HEAD_SIZE = (("head_dim", "kv_channels"), 2**16)
_VOCABULARY = (("vocab_size", "padded_vocab_size"), 2**24)
_CONTEXT = (("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"), 2**27)
_INNER = (("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff"), 2**24)
_EXPERTS = (("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "n_experts"), 2**16)
_CHOSEN = (("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "moe_k", "top_k_experts"), 2**16)
_WINDOW = (("sliding_window",), 2**27)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What config.json says, checked."""

    values: Mapping[str, Any]  # the whole file, as it is of the decoded weights
    architecture: str  # architectures[0]
    model_type: str
    hidden_size: int
    layers: int
    vocab_size: int
    context_length: int | None
    heads: int | None
    kv_heads: int | None
    head_size: int | None
    experts: int  # of a mixture-of-experts layer, 0: dense
    ties_embeddings: bool | None  # None: not said
    release: Release | None  # the quantized format that the weights are stored in
    notes: tuple[str, ...]


def read_config(path: Path, defaults: Callable[[str], Mapping[str, Any]] = lambda _: {}) -> ModelConfig:
    """Read and check config.json.

    defaults: of a model type, for what the section of text leaves out: Gemma 3 its vocabulary, LLaVA nearly everything.

    Raises UnsafeSource for absurd or mistyped values and remote code, SourceRefused for a model that is
    quantized from an original, Unsupported for an architecture that transformers does not know.
    """
    values = read_values(path)
    architecture = _architecture(values)
    _refuse_unknown_dtype(values)
    release = read_release(values, text_part(values))
    notes = _refuse_unknown(values, architecture)
    text = text_part(values)
    text = {**defaults(str(text.get("model_type"))), **text} if "text_config" in values else text
    numbers = {name: _number(text, *field, listed=name in _LISTED) for name, field in _FIELDS.items()}
    numbers["layers"] = numbers["layers"] or _listed_layers(text)
    hidden, layers, vocabulary = (_needed(numbers, name) for name in ("hidden size", "layers", "vocabulary"))
    _refuse_wrongly_chosen(numbers["experts"], numbers["experts a token"])
    heads = numbers["heads"]
    return ModelConfig(
        values=_as_read(unquantized(values)),
        architecture=architecture,
        model_type=_word(values.get("model_type"), "model_type"),
        hidden_size=hidden,
        layers=layers,
        vocab_size=vocabulary,
        context_length=numbers["context"],
        heads=heads,
        kv_heads=numbers["key/value heads"] or heads,
        head_size=numbers["head size"] or (hidden // heads if heads else None),
        experts=numbers["experts"] or 0,
        ties_embeddings=_truth(values.get("tie_word_embeddings", text.get("tie_word_embeddings"))),
        release=release,
        notes=notes,
    )


def read_values(path: Path) -> dict[str, Any]:
    """A config.json as it is, within bounds, without sections that are null; no field is checked."""
    return without_null_sections(read_object(path, largest=_LARGEST, constants=True))


def without_null_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """To transformers `"text_config": null` is as if it were not there."""
    return {name: value for name, value in values.items() if value is not None or not name.endswith("_config")}


_FIELDS = {
    "layers": _LAYERS,
    "hidden size": _HIDDEN,
    "heads": _HEADS,
    "key/value heads": _KV_HEADS,
    "head size": _HEAD_SIZE,
    "vocabulary": _VOCABULARY,
    "context": _CONTEXT,
    "inner size": _INNER,
    "experts": _EXPERTS,
    "experts a token": _CHOSEN,
    "window": _WINDOW,
}


# What some configurations give as a list with a number for each block: Gemma 3n, HunYuan.
_LISTED = frozenset({"heads", "key/value heads", "inner size", "experts", "experts a token"})


def _as_read(values: Mapping[str, Any]) -> dict[str, Any]:
    """The file as it is for weights that are rounded or decoded when they are read, and for every caller."""
    return {
        key: _as_read(value)
        if isinstance(value, dict)
        else _READ_AS[value]
        if key in _DTYPE and isinstance(value, str) and value in _READ_AS
        else value
        for key, value in values.items()
        if key not in _OF_A_CALLER
    }


_DTYPE = ("dtype", "torch_dtype")
_READ_AS = {"float64": "float32", "float8_e4m3fn": "bfloat16"}
# How the author's own program ran the model: kernels that another machine lacks, tuples that transformers trips over,
# attention that kernels do not tell.
_OF_A_CALLER = frozenset(
    "attn_implementation _attn_implementation return_dict use_return_dict output_attentions output_hidden_states".split()
)


def _refuse_unknown_dtype(values: Mapping[str, Any]) -> None:
    """transformers looks the type up among torch's by its plain name, and stops at `auto` or `torch.bfloat16`."""
    for part, where in ((values, ""), (text_part(values), "text_config.")):
        for key in _DTYPE:
            if isinstance(value := part.get(key), str) and not _TYPE.fullmatch(value):
                msg = f"{where}{key} of config.json must be one of torch's types by its plain name, such as bfloat16; found {ascii(value)[:60]}. Correct it in a copy of the model, or ask the author."
                raise UnsafeSource(msg)


_TYPE = re.compile(r"(b?float(8_|16|32|64)|half|float$|double|u?int)[a-z0-9_]*")


def text_part(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's own section; multimodal configurations keep it in `text_config`."""
    return object_of(values["text_config"], "text_config of config.json") if "text_config" in values else values


def alike_at_all_distances(values: Mapping[str, Any], length: int) -> bool:
    """Whether a part of a text shows all that a text of so many tokens would.

    Not where attention ends at a window or goes by chunks, where kinds of layers take turns, or where rotary positions are scaled.
    """
    text = text_part(values)
    kinds = {
        str(kind)
        for key, value in text.items()
        if key.startswith("layer") and isinstance(value, list)
        for kind in value
    }
    bounds = [value for key, value in text.items() if _BOUND.search(key)]
    felt = any(value if isinstance(value, bool) else isinstance(value, int) and 0 < value < length for value in bounds)
    return not felt and kinds <= {"full_attention"} and _rope_kinds(text) <= {"default"}


def _rope_kinds(value: object, key: str = "") -> set[str]:
    """Every `rope_type`, and `type` of a section about rope, at whatever depth."""
    if not isinstance(value, Mapping):
        return {str(value)} if key == "rope_type" and value is not None else set()
    about = {"type"} & value.keys() if "rope" in key else set[str]()
    own = {str(value[name]) for name in about}
    return own.union(*(_rope_kinds(inner, name) for name, inner in value.items() if isinstance(name, str)))


def _architecture(values: Mapping[str, Any]) -> str:
    names = values.get("architectures")
    if not isinstance(names, list) or len(names) != 1:
        msg = f"config.json must name one class in the list `architectures`; found {ascii(names)[:100]}. Without it no runtime but transformers knows how to run the weights. {_named(values)}"
        raise Unsupported(msg.rstrip())
    return _word(names[0], "architectures[0]")


def _word(value: object, key: str) -> str:
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
        msg = f"{key} of config.json must be a plain identifier; found {ascii(value)[:100]}. Correct it in a copy of the model, or ask the author."
        raise UnsafeSource(msg)
    return value


def _refuse_unknown(values: Mapping[str, Any], architecture: str) -> tuple[str, ...]:
    """Refuse what transformers cannot run itself; notes on what is ignored."""
    known = known_to_transformers(architecture)
    if "auto_map" in values and not known:
        msg = f"{architecture} needs Python code from the model's repo (auto_map in config.json). hubbot never runs such code; a model whose architecture is part of transformers is needed."
        raise UnsafeSource(msg)
    if not known and (purpose := other_purpose(architecture)):
        msg = f"{architecture} {purpose}; hubbot makes language models that write text, with images or without. Name the repo of such a model{_with_its_head(values, architecture)}."
        raise Unsupported(msg)
    if not known:
        msg = f"transformers does not know {architecture} as a causal language model, nor as one of images and text. {_written_by(values)}{_named(values)}A newer hubbot may know it; see docs/formats.md for what is supported."
        raise Unsupported(msg)
    if values.get("is_encoder_decoder"):
        msg = f"{architecture} is an encoder-decoder model; hubbot makes decoder-only language models."
        raise Unsupported(msg)
    ignored = ("remote code (auto_map) was ignored",) if "auto_map" in values else ()
    return (*ignored, *_of_another_type(values, architecture))


def _of_another_type(values: Mapping[str, Any], architecture: str) -> tuple[str, ...]:
    """A note where `architectures` names a class of another model type: transformers goes by the type, others by the class."""
    kind = values.get("model_type")
    built = classes_of(kind)
    if not built or architecture.lower() in map(str.lower, built):
        return ()
    return (
        f"config.json names the class {architecture} and model_type {kind}, with which transformers builds {built[0]}: hubbot computes "
        f"and measures {built[0]}, and runtimes that go by the class, such as vLLM and llama.cpp, run {architecture}",
    )


def _with_its_head(values: Mapping[str, Any], architecture: str) -> str:
    """What to do with a model that looks back and that a trainer of embeddings saved without naming its head."""
    kind = values.get("model_type")
    whole = class_of(kind)
    own = whole is not None and architecture == f"{whole.removesuffix('ForCausalLM')}Model"
    if not own or values.get("is_causal") is False or values.get("use_bidirectional_attention"):
        return ""
    return (
        f"; or, if it computes embeddings with the weights of a {whole} whose head is the embedding (tie_word_embeddings), name that "
        "class in a copy: its variants keep how they pool, and are measured by the tokens that such a head writes"
    )


def _written_by(values: Mapping[str, Any]) -> str:
    """The release that has written the configuration, which knew the architecture, beside the one that is here."""
    written = values.get("transformers_version")
    here = metadata.version("transformers")
    if not isinstance(written, str) or not _RELEASE.fullmatch(written) or written == here:
        return ""
    return f"Its config.json was written by transformers {written}; here is {here}. "


def _named(values: Mapping[str, Any]) -> str:
    """Which class `architectures` could name."""
    kind = values.get("model_type")
    known = class_of(kind)
    return (
        f"transformers has {known} for model_type {kind}: if the weights are such a model's, name that in a copy of it. "
        if known
        else ""
    )


def _number(text: Mapping[str, Any], names: tuple[str, ...], greatest: int, *, listed: bool) -> int | None:
    """The first of `names` that is there and not null. listed: a list with a number for each block counts as its greatest."""
    for name in names:
        value = text.get(name)
        if value is None:
            continue
        found: list[int] = value if listed and isinstance(value, list) and 0 < len(value) <= _LAYERS[1] else [value]
        if not all(type(each) is int and 0 <= each <= greatest for each in found):
            msg = f"{name} of config.json must be a whole number from 0 to {greatest:,}; found {ascii(value)[:60]}. Correct it in a copy of the model, or ask the author."
            raise UnsafeSource(msg)
        return max(found)
    return None


def _listed_layers(text: Mapping[str, Any]) -> int | None:
    """How many blocks a list of their kinds has: Nemotron-H gives no number beside it. A letter each, where it is text."""
    key, kinds = next(((key, text[key]) for key in _KINDS if isinstance(text.get(key), list | str)), ("", ()))
    if len(kinds) > _LAYERS[1]:
        msg = (
            f"{key} of config.json lists {len(kinds):,} blocks; at most {_LAYERS[1]:,} are an honest number of layers."
        )
        raise UnsafeSource(msg)
    return len(kinds) or None


_KINDS = ("layers_block_type", "hybrid_override_pattern", "layer_types", "block_types")


def _refuse_wrongly_chosen(experts: int | None, chosen: int | None) -> None:
    """A router that is to choose more experts than there are fails at the first token; one that chooses none computes nothing."""
    if experts and chosen is not None and not 0 < chosen <= experts:
        msg = f"config.json has {experts:,} experts a layer and gives every token {chosen:,} of them. One of the two is wrong: correct it in a copy of the model."
        raise UnsafeSource(msg)


def _needed(numbers: Mapping[str, int | None], name: str) -> int:
    value = numbers[name]
    if not value:
        msg = f"config.json does not give the number that every language model has: {name}. It is damaged or not of a language model."
        raise UnsafeSource(msg)
    return value


def _truth(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    msg = f"tie_word_embeddings of config.json must be true or false; found {ascii(value)[:60]}. Correct it in a copy of the model, or ask the author."
    raise UnsafeSource(msg)
