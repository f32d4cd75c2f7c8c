"""Models that are released quantized: which formats are taken as an original, and the weights that their tensors hold.

Models are trained for FP8 or published in it by their authors (DeepSeek-V3, Qwen3-…-FP8), often with nothing better to
be had. Integers of 4 bits and the like are made of such originals by others, so they are refused.
Nothing is read here but config.json and headers; `hubbot.model.weights` decodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hubbot.errors import SourceRefused, UnsafeSource
from hubbot.model.safetensors import Coded, TensorInfo
from hubbot.model.strict_json import object_of

__all__ = ["Release", "read_release", "released_weights", "unquantized"]

_KEYS = ("quantization_config", "compression_config")
_FP8 = "F8_E4M3"
_SCALES = ("F32", "BF16", "F16", "F8_E8M0")
_BLOCK = (128, 128)  # rows and columns; what transformers takes where config.json gives none
_LARGEST_BLOCK = 2**20
# Of activations and of the key/value cache: they say how a runtime rounds while it computes, no weight's value.
_OF_ACTIVATIONS = ("activation_scale", "input_scale", "k_scale", "v_scale", "q_scale", "kv_scale", "output_scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The format that a model was released in. block: rows and columns that share a scale; None: the whole tensor."""

    title: str  # as a card says it: "FP8"
    block: tuple[int, int] | None


def read_release(config: Mapping[str, Any], text: Mapping[str, Any]) -> Release | None:
    """What config.json says of its quantization; None where it says nothing.

    text: the language model's section. Raises SourceRefused for formats that are made of an original.
    """
    found = next((part[key] for part in (config, text) for key in _KEYS if part.get(key)), None)
    if found is None:
        return None
    method = found.get("quant_method", "an unnamed method") if isinstance(found, dict) else "an unnamed method"
    if method == "fp8" and found.get("fmt", "e4m3") in ("e4m3", "float8_e4m3fn"):
        return Release(title="FP8", block=_block(found))
    msg = f"The model is already quantized ({ascii(method)[:40]} in config.json). Quantizing twice adds the errors of both; give the original model."
    raise SourceRefused(msg)


def _block(found: Mapping[str, Any]) -> tuple[int, int] | None:
    block = found.get("weight_block_size", list(_BLOCK))
    if block is None:
        return None
    if not (
        isinstance(block, list)
        and len(block) == 2
        and all(type(size) is int and 0 < size <= _LARGEST_BLOCK for size in block)
    ):
        msg = f"weight_block_size of config.json must be two whole numbers from 1 to {_LARGEST_BLOCK:,}, rows and columns; found {ascii(block)[:60]}."
        raise UnsafeSource(msg)
    return block[0], block[1]


def unquantized(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as it is of the decoded model: nothing about a quantization."""
    kept = {key: value for key, value in config.items() if key not in _KEYS}
    if isinstance(kept.get("text_config"), dict):
        kept["text_config"] = unquantized(object_of(kept["text_config"], "text_config of config.json"))
    return kept


def released_weights(tensors: Mapping[str, TensorInfo], release: Release) -> tuple[dict[str, TensorInfo], int]:
    """The tensors as those of the decoded model, and how many scales of activations were left out.

    A weight in FP8 becomes one in BF16 that knows its scales. Raises SourceRefused for one without or with others.
    """
    scale_of = {name: _scale_name(name, tensors) for name, info in tensors.items() if info.stored == _FP8}
    taken = set(scale_of.values())
    kept = {
        name: info
        for name, info in tensors.items()
        if name not in taken and not (info.count == 1 and name.endswith(_OF_ACTIVATIONS))
    }
    decoded = {name: _decoded(name, tensors, scale, release) for name, scale in scale_of.items()}
    return {name: decoded.get(name, info) for name, info in kept.items()}, len(tensors) - len(taken) - len(kept)


def _scale_name(name: str, tensors: Mapping[str, TensorInfo]) -> str:
    found = next((f"{name}{end}" for end in ("_scale_inv", "_scale") if f"{name}{end}" in tensors), None)
    if found is None:
        msg = f"{name} is stored as {_FP8} and its scales are not: neither {name}_scale_inv nor {name}_scale is there. Fetch the model whole."
        raise SourceRefused(msg)
    return found


def _decoded(name: str, tensors: Mapping[str, TensorInfo], scale_name: str, release: Release) -> TensorInfo:
    info, scale = tensors[name], tensors[scale_name]
    block = release.block or info.shape[-2:]
    grid = _grid(info.shape, block)
    if scale.stored not in _SCALES or (scale.count != 1 and scale.shape != grid):
        msg = (
            f"{scale_name} is stored as {scale.stored} with the shape {list(scale.shape)}; floating point with the shape {list(grid)} is "
            f"needed, a scale for {' x '.join(map(str, block))} weights of {name} (weight_block_size of config.json), or one for all. "
            "Fetch the model again, or ask the author."
        )
        raise SourceRefused(msg)
    return replace(info, dtype="BF16", coded=Coded(scale=scale_name, scales=scale, block=block))


def _grid(shape: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales: as the weight's, its last dimensions counted in blocks, of which the last may be cut off."""
    whole = len(shape) - len(block)
    return (*shape[:whole], *(math.ceil(size / step) for size, step in zip(shape[whole:], block, strict=False)))
