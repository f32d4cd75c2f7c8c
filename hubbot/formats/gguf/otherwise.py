"""What config.json asks for and llama.cpp would compute otherwise, since its converter has no key for it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from hubbot.errors import Unsupported
from hubbot.model.companions import modules_with_weights
from hubbot.model.empty import config_defaults

__all__ = ["notes_on", "refuse_other_experts", "refuse_other_positions", "refuse_otherwise"]

_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
_ALIKE = {"swish": "silu"} | dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_accurate"), "gelu")
# Whether llama.cpp's program makes the weights of a token's experts sum to one, where no key of a file says so.
_SUM_TO_ONE = {"qwen2_moe": False, "olmoe": False, "qwen3_moe": True, "qwen3_next": True}
# Keys of a model type with the one value that llama.cpp's program has for all models of it.
_FIXED: dict[str, dict[str, bool]] = {
    "gpt2": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    "gpt_bigcode": {"scale_attn_weights": True},
    "bloom": {"apply_residual_connection_post_layernorm": False},
    "falcon": {"parallel_attn": True, "alibi": False},
    "gemma3_text": {"use_bidirectional_attention": False},
}
_BOTH_WAYS = {
    "is_causal": False,
    "use_bidirectional_attention": "all",
}  # of types that have them: every token sees all others
# Types that config.json gives a scale of attention and a file does not -> blocks of the one size that has another than a head's.
_SCALED = {"gemma2": 46, "gemma3_text": 62}
_PLAIN_EVERY = {"smollm3": 4, "llama4_text": 4}  # every so manieth block has no rotary positions
_NEVER_WRITTEN = {"chameleon": range(4, 8196)}  # tokens of images, which llama.cpp's program keeps out of answers
_LEAVE = "Leave the GGUF types out of --variants."
_STEP = 256  # tokens by which llama.cpp's contexts grow
_ALIKE_ENOUGH = 0.01  # of a scale
_BETAS = {"beta_fast": 32, "beta_slow": 1}  # of YaRN, as llama.cpp and transformers take them where none are given
_READS_BETAS = ("grok.rope.", "mistral3.rope.")  # the architectures for which llama.cpp reads a file's
_OWN_FACTORS = ("attention_factor", "mscale", "mscale_all_dim")  # of YaRN


def refuse_otherwise(config: Mapping[str, Any]) -> None:
    """Raise Unsupported for what a model type may have either way and llama.cpp has one way in its program."""
    text = config.get("text_config", config)
    kind = str(text.get("model_type"))
    asked = chain(
        _on_weights(text, kind),
        _on_activation(text, kind),
        _on_attention(text, kind),
        _on_image_tokens(config),
        _on_positions(text, kind),
    )
    for told in asked:
        raise _untold(told)


def _untold(told: str) -> Unsupported:
    return Unsupported(f"{told}, and no key of a file tells it otherwise. {_LEAVE}")


def _on_weights(text: Mapping[str, Any], kind: str) -> Iterator[str]:
    """Of the BitNet that llama.cpp knows, an older one than transformers' and Microsoft's."""
    if kind == "bitnet":
        gate = {**config_defaults(kind), **text}["hidden_act"]
        yield (
            "llama.cpp's converter rounds every matrix of a bitnet model to three values, and its program computes 'silu' at the gate; "
            f"this one computes with its weights as they are stored, and {gate!a}"
        )


def _on_activation(text: Mapping[str, Any], kind: str) -> Iterator[str]:
    """Another activation function than the architecture's. Names of one function, and GELU with its approximation by tanh, count as the same."""
    defaults = config_defaults(kind)
    for key in _ACTIVATIONS:
        asked, own = text.get(key), defaults.get(key)
        if isinstance(asked, str) and isinstance(own, str) and _ALIKE.get(asked, asked) != _ALIKE.get(own, own):
            yield f"{key} of config.json is {asked!a}; llama.cpp computes {own!a} for every {kind} model"


def _on_attention(text: Mapping[str, Any], kind: str) -> Iterator[str]:
    """Keys that have one value there, and another scale of attention."""
    values = {**config_defaults(kind), **text}
    for key, value in _BOTH_WAYS.items():
        if text.get(key) == value:
            yield f"{key} of config.json is {value}, so that a token sees those behind it; llama.cpp computes {kind} models as those that look back"
    found: dict[str, float] = dict(_FIXED.get(kind, {}))
    if kind in _SCALED:
        found["query_pre_attn_scalar"] = _scale_of_attention(values, _SCALED[kind])
    for key, own in found.items():
        asked = values.get(key)
        if isinstance(asked, bool | int | float) and asked != own:
            yield f"{key} of config.json is {asked}; llama.cpp computes such {kind} models with {own}"


def _scale_of_attention(values: Mapping[str, Any], large: int) -> int:
    """The numbers of a head; of the size with so many blocks those that a head would have of the hidden states."""
    if values["num_hidden_layers"] == large:
        return int(values["hidden_size"] // values["num_attention_heads"])
    return int(values["head_dim"])


def _on_image_tokens(config: Mapping[str, Any]) -> Iterator[str]:
    """Tokens that are never written, because they are of images."""
    never = _NEVER_WRITTEN.get(str(config.get("model_type")))
    named = config.get("vocabulary_map")
    of_images = {number for name, number in (named or {}).items() if str(name).startswith("IMGIMG")}
    if never is not None and of_images != {*never}:
        yield (
            f"vocabulary_map of config.json names {len(of_images):,} tokens of images, which the model never writes; for llama.cpp those are tokens "
            f"{never.start:,} to {never.stop - 1:,} of every {config['model_type']} model"
        )


def _on_positions(text: Mapping[str, Any], kind: str) -> Iterator[str]:
    """Other blocks without rotary positions."""
    step = _PLAIN_EVERY.get(kind)
    rotates = text.get("no_rope_layers")  # 1 of a block that has them
    if step is None or not isinstance(rotates, list):
        return
    other = next((block for block, one in enumerate(rotates) if bool(one) is ((block + 1) % step == 0)), None)
    if other is not None:
        yield (
            f"no_rope_layers of config.json has {rotates[other]} for block {other}; llama.cpp computes every {step}th block of a {kind} model, and no "
            "other, without rotary positions"
        )


def refuse_other_experts(config: Mapping[str, Any], metadata: Collection[str]) -> None:
    """Raise Unsupported where weights of a token's experts sum to one in the model and not in llama.cpp, or the other way round.

    metadata: names of the file's.
    """
    text = config.get("text_config", config)
    kind = str(text.get("model_type"))
    asked = text.get("norm_topk_prob", config_defaults(kind).get("norm_topk_prob")) if kind in _SUM_TO_ONE else None
    told = any(key.endswith(".expert_weights_norm") for key in metadata)
    if isinstance(asked, bool) and asked is not _SUM_TO_ONE[kind] and not told:
        told_of = (
            f"norm_topk_prob of config.json is {str(asked).lower()}, and llama.cpp computes every {kind} model as if it were "
            f"{str(not asked).lower()}: the weights of a token's experts sum to one in one of the two alone"
        )
        raise _untold(told_of)


def refuse_other_positions(
    config: Mapping[str, Any], metadata: Collection[str], tensors: Collection[str], context: int
) -> None:
    """Raise Unsupported where llama.cpp reads texts of `context` tokens, the evaluation's, otherwise than the model does.

    metadata and tensors: names of the file's.
    """
    text = config.get("text_config", config)
    told = chain(
        _beyond_window(text, metadata, context), _untold_rope(text, metadata, tensors), _factors_of(text, context)
    )
    for each in told:
        raise Unsupported(each)


def _beyond_window(text: Mapping[str, Any], metadata: Collection[str], context: int) -> Iterator[str]:
    window = _untold_window(text, metadata)
    if window is not None and context > window:
        yield (
            f"the model looks at the last {window:,} tokens (sliding_window), llama.cpp's converter writes no window for its architecture, and the "
            f"evaluation reads {context:,} tokens at a time, of which llama.cpp would see all. Take --context {window} or less, which both "
            "read alike, or leave the GGUF types out of --variants."
        )


def _untold_rope(text: Mapping[str, Any], metadata: Collection[str], tensors: Collection[str]) -> Iterator[str]:
    """Stretched positions that differ from the first tokens on."""
    kind, rope = _rope(text)
    if kind in ("linear", "yarn") and not _tells_rope(metadata, tensors):
        yield f"the model stretches its rotary positions (rope_type {kind}), and llama.cpp's converter writes nothing of it for its architecture. {_LEAVE}"
    elif kind in ("longrope", "su") and not any(key.startswith("rope_f") for key in tensors):
        yield (
            f"the model stretches its rotary positions by factors of its own (rope_type {kind}), and llama.cpp's converter writes none for its "
            f"architecture. {_LEAVE}"
        )
    betas = tuple(rope.get(key) or own for key, own in _BETAS.items())
    if kind == "yarn" and betas != tuple(_BETAS.values()) and not any(key.startswith(_READS_BETAS) for key in metadata):
        yield (
            f"the model stretches its rotary positions between channels of its own (beta_fast {betas[0]}, beta_slow {betas[1]}, rope_type yarn), and "
            f"llama.cpp between those of 32 and 1 for its architecture. {_LEAVE}"
        )
    factor = _number(rope, "factor") or 1.0
    ours, theirs = _scale_of_yarn(rope, factor), _softening(factor)
    knows = any(key.endswith((".yarn_log_multiplier", ".scaling.attn_factor")) for key in metadata)
    if kind == "yarn" and not knows and abs(ours / theirs - 1) > _ALIKE_ENOUGH:
        given = next(key for key in _OWN_FACTORS if rope.get(key) is not None)
        yield (
            f"the model scales its attention by {ours:.4g} ({given} {rope[given]}, rope_type yarn), and llama.cpp by 1 + 0.1 ln(factor) = "
            f"{theirs:.4g} for its architecture. {_LEAVE}"
        )


def _factors_of(text: Mapping[str, Any], context: int) -> Iterator[str]:
    """LongRoPE has factors for short texts and for long ones; llama.cpp goes by the size of its context."""
    kind, rope = _rope(text)
    short = _short(text, rope)
    if kind in ("longrope", "su") and short and context <= short < _padded(context):
        yield (
            f"the model takes its factors of short texts up to {short:,} tokens (rope_type {kind}), and llama.cpp those of long texts in every "
            f"context beyond that, of which the smallest has {_padded(context):,} tokens. Take a --context of more than {short}, or leave the "
            "GGUF types out of --variants."
        )


def _padded(context: int) -> int:
    return -(-context // _STEP) * _STEP


def _short(text: Mapping[str, Any], rope: Mapping[str, Any]) -> int | None:
    key = "original_max_position_embeddings"
    found = rope.get(key, text.get(key))
    return found if type(found) is int and rope.get("short_factor") != rope.get("long_factor") else None


def _scale_of_yarn(rope: Mapping[str, Any], factor: float) -> float:
    """As transformers takes it."""
    given, part, whole = (_number(rope, key) for key in _OWN_FACTORS)
    if given is not None:
        return given
    return _softening(factor, part) / _softening(factor, whole) if part and whole else _softening(factor)


def _softening(factor: float, share: float = 1.0) -> float:
    return 1.0 + 0.1 * share * math.log(factor) if factor > 1 else 1.0


def _number(values: Mapping[str, Any], key: str) -> float | None:
    found = values.get(key)
    return float(found) if isinstance(found, int | float) else None


def _rope(text: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """How rotary positions are stretched; None where they are not, or by kinds of layers."""
    found = text.get("rope_parameters") or text.get("rope_scaling")
    rope: Mapping[str, Any] = found if isinstance(found, dict) else {}
    kind = rope.get("rope_type", rope.get("type"))
    return (kind if isinstance(kind, str) and kind != "default" else None), rope


def _tells_rope(metadata: Collection[str], tensors: Collection[str]) -> bool:
    return any(key.endswith(".rope.scaling.type") for key in metadata) or any(
        key.startswith("rope_f") for key in tensors
    )


def notes_on(
    config: Mapping[str, Any], metadata: Collection[str], tensors: Collection[str], folder: Path
) -> tuple[str, ...]:
    """What a reader of the files should know. metadata and tensors: names of the file's; folder: the model's."""
    text = config.get("text_config", config)
    return (*_on_window(text, metadata), *_on_rope(text, metadata, tensors), *_on_modules(folder))


def _on_window(text: Mapping[str, Any], metadata: Collection[str]) -> Iterator[str]:
    window = _untold_window(text, metadata)
    if window is not None:
        yield (
            f"the model looks at the last {window:,} tokens (sliding_window), and llama.cpp's converter writes no window for its "
            "architecture: llama.cpp looks at the whole text, so that longer texts come out otherwise"
        )


def _untold_window(text: Mapping[str, Any], metadata: Collection[str]) -> int | None:
    """Attention that slides over the text, where the converter has no key for it in this architecture."""
    window, kinds = text.get("sliding_window"), text.get("layer_types") or ["sliding_attention"]
    slides = text.get("use_sliding_window", True) and "sliding_attention" in kinds
    told = any(key.endswith(".attention.sliding_window") for key in metadata)
    return window if type(window) is int and slides and not told else None


def _on_rope(text: Mapping[str, Any], metadata: Collection[str], tensors: Collection[str]) -> Iterator[str]:
    """Stretched rotary positions that texts of some length have otherwise."""
    kind, rope = _rope(text)
    if kind == "dynamic" and not _tells_rope(metadata, tensors):
        yield "the model stretches its rotary positions for texts beyond its context (rope_type dynamic), and llama.cpp does not: such texts come out otherwise"
    if kind in ("longrope", "su") and (short := _short(text, rope)):
        yield (
            f"the model has factors of its rotary positions for texts of up to {short:,} tokens and others beyond (rope_type {kind}); llama.cpp goes by "
            f"the size of its context: give it -c {short} for short texts"
        )
    if kind == "yarn" and rope.get("truncate") is False:
        yield "the model does not round the channels between which its rotary positions are stretched (truncate false, rope_type yarn), and llama.cpp does: long texts come out otherwise"


def _on_modules(folder: Path) -> Iterator[str]:
    """Layers that sentence-transformers puts behind the model, which no GGUF file holds."""
    if layers := modules_with_weights(folder):
        named = ", ".join(f"{path} ({kind})" for path, kind in layers.items())
        yield (
            f"modules.json puts {named} behind the model, which the GGUF files end before: llama.cpp's embeddings are the pooled "
            "hidden states, not those of sentence-transformers"
        )
