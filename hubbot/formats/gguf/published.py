"""A checkpoint's names and configuration as llama.cpp's converter knows them, where transformers 5 has others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hubbot.model.config import without_null_sections

__all__ = ["as_published", "name_for"]

_CLIP = "vision_tower.embeddings."  # a tower of CLIP or SigLIP; Gemma 4's has an encoder too, under this very name
_TOWER = re.compile(r"^(model\.)?vision_tower\.(?=(embeddings|encoder|pre_layrnorm|post_layernorm|head)\.)")
_INDEXED = "indexed_attention"  # transformers' name for layers that are full attention on the Hub: Dots 3's, Qwen 4's
# Types whose router takes the sigmoid of its scores in transformers, which keeps no key for it: its converters take a softmax then.
_BY_SIGMOID = frozenset({"deepseek_v3", "deepseek_v32", "dots1", "exaone_moe", "glm4_moe_lite", "solar_open"})
_TWICE = re.compile(
    r"^(model\.){2,}(?=(embed_tokens|layers|norm)\.)"
)  # saved out of a wrapper, which transformers sees through
_TILES = "min_dynamic_tiles"  # of the converter's class for InternVL's tower, which knows it inside `model.` alone
_SEEING = re.compile(r"^(vision_tower|multi_modal_projector)\.")
_BREAK = "img_break_tok_id"  # of the converter's class for Pixtral's tower, which writes that token's embedding too


def name_for(converter: object, tensors: Iterable[str]) -> Callable[[str], str]:
    """A tensor's name -> what this class of the converter calls it."""
    if hasattr(converter, _TILES):
        return lambda name: _SEEING.sub(r"model.\g<0>", name)
    if any(_CLIP in key for key in tensors):  # transformers 5 saves such a tower without `vision_model.`
        return lambda name: _TOWER.sub(r"\g<0>vision_model.", name)
    if hasattr(converter, _BREAK):  # it passes over what is called the text's
        return lambda name: name.replace("language_model.", "") if name.endswith("embed_tokens.weight") else name
    return lambda name: _TWICE.sub("model.", name)


def as_published(parsed: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as transformers parsed it, with what config.json says beside and transformers has turned into something else.

    Rotary positions stay as transformers has them, but for the shares of the channels that converters ask for by other names.
    """
    whole = _with_lost_keys(without_null_sections(parsed), published)
    if "n_positions" in whole:  # GPT-2's converter: transformers 5 saves the one name of two
        whole.setdefault("n_ctx", whole["n_positions"])
    if whole.get("multi_query") and whole.get("new_decoder_architecture") is False:
        whole["num_kv_heads"] = 1  # Falcon 7B's, which says as many as it has heads, and computes with one
    if whole.get("model_type") in _BY_SIGMOID:
        whole.setdefault("scoring_func", "sigmoid")
    rope = whole.get("rope_parameters") or {}
    if "rotary_pct" not in whole and "full_attention" not in rope:  # GPT-NeoX' and Cohere's converters
        return {**whole, "rotary_pct": rope.get("partial_rotary_factor", 1.0)}
    return whole


def _with_lost_keys(parsed: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, Any]:
    whole = {key: value for key, value in published.items() if key not in (*parsed, "rope_theta", "rope_scaling")}
    whole |= parsed
    rope, share = parsed.get("rope_parameters"), published.get("partial_rotary_factor")
    if rope and _INDEXED in rope:
        whole["rope_parameters"] = {"full_attention": rope[_INDEXED], **rope}
    if isinstance(kinds := parsed.get("layer_types"), list):
        whole["layer_types"] = ["full_attention" if kind == _INDEXED else kind for kind in kinds]
    if rope and "full_attention" in rope and share is not None:  # MiMo's converter: one share for all kinds of layers
        whole["rope_parameters"] = {**rope, "partial_rotary_factor": share}
    for part in ("text_config", "vision_config"):
        if isinstance(parsed.get(part), dict) and isinstance(published.get(part), dict):
            whole[part] = _with_lost_keys(parsed[part], published[part])
    return whole
