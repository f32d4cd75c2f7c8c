"""What config.json asks for and llama.cpp would compute otherwise, since its converter has no key for it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from hubbot.errors import Unsupported
from hubbot.model.companions import modules_with_weights
from hubbot.model.empty import config_defaults

__all__ = ["notes_on", "refuse_other_experts", "refuse_otherwise"]

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
}
# Types that config.json gives a scale of attention and a file does not -> blocks of the one size that has another than a head's.
_SCALED = {"gemma2": 46, "gemma3_text": 62}
_PLAIN_EVERY = {"smollm3": 4, "llama4_text": 4}  # every so manieth block has no rotary positions
_NEVER_WRITTEN = {"chameleon": range(4, 8196)}  # tokens of images, which llama.cpp's program keeps out of answers
_OWN_FACTORS = ("attention_factor", "mscale", "mscale_all_dim")  # of YaRN


def refuse_otherwise(config: Mapping[str, Any]) -> None:
    """Raise Unsupported for what a model type may have either way and llama.cpp has one way in its program."""
    text = config.get("text_config", config)
    kind = str(text.get("model_type"))
    asked = chain(
        _on_activation(text, kind), _on_attention(text, kind), _on_image_tokens(config), _on_positions(text, kind)
    )
    for told in asked:
        raise _untold(told)


def _untold(told: str) -> Unsupported:
    return Unsupported(f"{told}, and no key of a file tells it otherwise. Leave the GGUF types out of --variants.")


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


def refuse_other_image_tokens(config: Mapping[str, Any]) -> None:
    """Raise Unsupported where the tokens that are never written, because they are of images, are others than llama.cpp's."""
    never = _NEVER_WRITTEN.get(str(config.get("model_type")))
    named = config.get("vocabulary_map")
    of_images = {number for name, number in (named or {}).items() if str(name).startswith("IMGIMG")}
    if never is not None and of_images != {*never}:
        msg = (
            f"vocabulary_map of config.json names {len(of_images):,} tokens of images, which the model never writes; for llama.cpp those are tokens "
            f"{never.start:,} to {never.stop - 1:,} of every {config['model_type']} model, and no key of a file tells it otherwise. "
            "Leave the GGUF types out of --variants."
        )
        raise Unsupported(msg)


def notes_on(
    config: Mapping[str, Any], metadata: Collection[str], tensors: Collection[str], folder: Path
) -> tuple[str, ...]:
    """What a reader of the files should know. metadata and tensors: names of the file's; folder: the model's."""
    text = config.get("text_config", config)
    return (*_on_window(text, metadata), *_on_rope(text, metadata, tensors), *_on_modules(folder))


def _on_window(text: Mapping[str, Any], metadata: Collection[str]) -> Iterator[str]:
    """Attention that slides over the text, where the converter has no key for it in this architecture."""
    window, kinds = text.get("sliding_window"), text.get("layer_types") or ["sliding_attention"]
    slides = type(window) is int and text.get("use_sliding_window", True) and "sliding_attention" in kinds
    if slides and not any(key.endswith(".attention.sliding_window") for key in metadata):
        yield (
            f"the model looks at the last {window:,} tokens (sliding_window), and llama.cpp's converter writes no window for its "
            "architecture: llama.cpp looks at the whole text, so that longer texts come out otherwise"
        )


def _on_rope(text: Mapping[str, Any], metadata: Collection[str], tensors: Collection[str]) -> Iterator[str]:
    """Stretched rotary positions of which a file says nothing, or less than config.json."""
    found = text.get("rope_parameters") or text.get("rope_scaling")
    rope: dict[str, Any] = found if isinstance(found, dict) else {}
    kind = rope.get("rope_type", rope.get("type"))
    if not isinstance(kind, str) or kind == "default":
        return
    told = any(key.endswith(".rope.scaling.type") for key in metadata) or any(
        key.startswith("rope_f") for key in tensors
    )
    if kind == "dynamic" and not told:
        yield "the model stretches its rotary positions for texts beyond its context (rope_type dynamic), and llama.cpp does not: such texts come out otherwise"
    elif kind in ("linear", "longrope", "su", "yarn") and not told:
        yield f"the model stretches its rotary positions (rope_type {kind}), and llama.cpp's converter writes nothing of it for its architecture"
    elif kind == "longrope" and not any(key.startswith("rope_f") for key in tensors):
        yield "the model stretches its rotary positions by factors of its own (rope_type longrope), and llama.cpp's converter writes none for its architecture"
    given = [key for key in _OWN_FACTORS if rope.get(key) is not None]
    if kind == "yarn" and given and not any(key.endswith(".yarn_log_multiplier") for key in metadata):
        yield f"the model scales its attention by {given[0]} {rope[given[0]]} (rope_type yarn), and llama.cpp by 1 + 0.1 ln(factor) for its architecture"


def _on_modules(folder: Path) -> Iterator[str]:
    """Layers that sentence-transformers puts behind the model, which no GGUF file holds."""
    if layers := modules_with_weights(folder):
        named = ", ".join(f"{path} ({kind})" for path, kind in layers.items())
        yield (
            f"modules.json puts {named} behind the model, which the GGUF files end before: llama.cpp's embeddings are the pooled "
            "hidden states, not those of sentence-transformers"
        )
