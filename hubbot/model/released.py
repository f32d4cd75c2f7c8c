"""Models that are released quantized: which formats are taken as an original, and the weights that their tensors hold.

Models are trained for FP8 and MXFP4 or published in them by their authors (DeepSeek-V3, Qwen3-…-FP8, gpt-oss), often with
nothing better to be had. Integers of 4 bits and the like are made of such originals by others, so they are refused.
A configuration alone says nothing: training on rounded weights leaves one over merged weights that are whole.
compressed-tensors' W4A16 is read all the same, for who insists: `MADE_OF_ANOTHER` is refused at the child's door.
Nothing is read here but config.json and headers; `hubbot.model.weights` decodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from hubbot.errors import SourceRefused, UnsafeSource
from hubbot.model.safetensors import DTYPE_BITS, Coded, TensorInfo

__all__ = ["MADE_OF_ANOTHER", "Release", "holds_codes", "read_release", "released_weights", "unquantized"]

_KEYS = ("quantization_config", "compression_config")
_FP8 = "F8_E4M3"
_CODES = frozenset(kind for kind in DTYPE_BITS if kind[0] in "UIF" and kind not in ("I64", "U64", "F64", "F32", "F16"))
_SCALES = ("F32", "BF16", "F16", "F8_E8M0")
_BLOCK = (128, 128)  # rows and columns; what transformers takes where config.json gives none
_LARGEST_BLOCK = 2**20
_INT4: Final = "W4A16"
MADE_OF_ANOTHER = frozenset({_INT4})  # titles of formats that somebody has made of an original
_IN_AN_INTEGER = 8  # codes of 4 bits in 32
_MX_BYTES, _MX_BLOCK = 16, 32  # of MXFP4: 32 weights of 4 bits share a scale
# Of activations and of the key/value cache: they say how a runtime rounds while it computes, no weight's value.
_OF_ACTIVATIONS = ("activation_scale", "input_scale", "k_scale", "v_scale", "q_scale", "kv_scale", "output_scale")


# transformers' BitNet layers round whole weights at every step, in training and after it; nothing else here would.
_ROUNDED_ON_THE_WAY = (
    "config.json says that the model computes with its weights rounded to three values (quant_method bitnet), and they are stored as they "
    "were before that: whoever takes them as they are has another model. hubbot does not round so, and runtimes of GGUF, GPTQ and "
    "bitsandbytes do not either: give a model that computes with the weights that it stores."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The format that config.json says the weights are stored in.

    title: as a card says it. block: rows and columns that share a scale; None: all of the matrix'. refusal: why weights
    in it are not read; None where they are. of_whole: why not even whole weights are taken as they are.
    """

    title: str
    block: tuple[int | None, int | None] = (None, None)
    refusal: str | None = None
    of_whole: str | None = None


def read_release(config: Mapping[str, Any], text: Mapping[str, Any]) -> Release | None:
    """What config.json says of its quantization; None where it says nothing.

    text: the language model's section. Formats that are made of an original come with a refusal.
    """
    found = next((part[key] for part in (config, text) for key in _KEYS if part.get(key)), None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else None
    if method == "mxfp4":
        return Release(title="MXFP4")
    if method == "fp8" and found.get("fmt", "e4m3") in ("e4m3", "float8_e4m3fn"):
        block = found.get("weight_block_size", list(_BLOCK))
        return Release(title="FP8", block=_checked(block, "weight_block_size"))
    if method == "compressed-tensors" and (weights := _compressed(found)):
        return Release(title="FP8", block=_strategy(weights))
    if method == "compressed-tensors" and (group := _groups_of_int4(found)):
        return Release(title=_INT4, block=(1, group))
    named = ascii(method)[:40] if method else "quantization_config"
    msg = f"The model is already quantized ({named} in config.json). Quantizing twice adds the errors of both; give the original model."
    return Release(title=named.strip("'"), refusal=msg, of_whole=_ROUNDED_ON_THE_WAY if method == "bitnet" else None)


def holds_codes(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether any weights are stored as codes: all formats hold them in small integers or in FP8."""
    return any(info.stored in _CODES and info.count > 1 for info in tensors.values())


def _compressed(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How compressed-tensors rounded the weights, where that is FP8 in one way for all; else None."""
    groups = found.get("config_groups")
    each = list(groups.values()) if isinstance(groups, dict) else []
    told = [group.get("weights") for group in each if isinstance(group, dict)]
    rounded = [one for one in told if isinstance(one, dict) and (one.get("type"), one.get("num_bits")) == ("float", 8)]
    alike = len(rounded) == len(each) > 0 and all(_strategy(one) == _strategy(rounded[0]) for one in rounded)
    return rounded[0] if alike else None


def _groups_of_int4(found: Mapping[str, Any]) -> int | None:
    """The columns that share a scale where all weights are symmetric integers of 4 bits in groups; else None."""
    groups = found.get("config_groups")
    told = [group.get("weights") for group in groups.values()] if isinstance(groups, dict) else []
    sizes = {one.get("group_size") for one in told if isinstance(one, dict) and _is_int4(one)}
    size = sizes.pop() if len(sizes) == 1 and all(isinstance(one, dict) and _is_int4(one) for one in told) else None
    return size if type(size) is int and 0 < size <= _LARGEST_BLOCK else None


def _is_int4(weights: Mapping[str, Any]) -> bool:
    kind = (weights.get("type"), weights.get("num_bits"), weights.get("strategy"), weights.get("symmetric"))
    return kind == ("int", 4, "group", True) and not weights.get("actorder")


def _strategy(weights: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """compressed-tensors' name of what shares a scale, as a block."""
    match weights.get("strategy", "tensor"):
        case "tensor":
            return (None, None)
        case "channel":
            return (1, None)
        case "block":
            return _checked(weights.get("block_structure"), "block_structure")
        case other:
            msg = f"The model's FP8 weights share scales by {ascii(other)[:40]} (strategy in config.json); tensor, channel and block are read. Give the original model."
            raise SourceRefused(msg)


def _checked(block: Any, key: str) -> tuple[int | None, int | None]:
    if block is None and key == "weight_block_size":
        return (None, None)
    if not (
        isinstance(block, list)
        and len(block) == 2
        and all(type(size) is int and 0 < size <= _LARGEST_BLOCK for size in block)
    ):
        msg = f"{key} of config.json must be two whole numbers from 1 to {_LARGEST_BLOCK:,}, rows and columns; found {ascii(block)[:60]}."
        raise UnsafeSource(msg)
    return block[0], block[1]


def unquantized(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json as it is of the decoded model: nothing about a quantization."""
    kept = {key: value for key, value in config.items() if key not in _KEYS}
    if isinstance(kept.get("text_config"), dict):
        kept["text_config"] = unquantized(kept["text_config"])
    return kept


def released_weights(tensors: Mapping[str, TensorInfo], release: Release) -> tuple[dict[str, TensorInfo], int]:
    """The tensors as those of the decoded model, and how many scales of activations were left out.

    Codes become a weight in BF16 that knows its scales. Raises SourceRefused for codes without scales or with others.
    """
    match release.title:
        case "MXFP4":
            found = dict(_mxfp4(tensors))
        case "W4A16":
            found = dict(_int4(tensors, release))
        case _:
            found = dict(_fp8(tensors, release))
    at = {info.coded.codes: name for name, info in found.items() if info.coded}
    taken = {info.coded.scale for info in found.values() if info.coded}
    taken |= {f"{name}_shape" for name in found if release.title == _INT4}
    dropped = {name for name, info in tensors.items() if info.count == 1 and name.endswith(_OF_ACTIVATIONS)} - taken
    kept = [name for name in tensors if name not in taken | dropped]
    return {at.get(name, name): found[at[name]] if name in at else tensors[name] for name in kept}, len(dropped)


def _fp8(tensors: Mapping[str, TensorInfo], release: Release) -> Iterator[tuple[str, TensorInfo]]:
    for name, info in tensors.items():
        if info.stored == _FP8:
            scale = next((f"{name}{end}" for end in ("_scale_inv", "_scale") if f"{name}{end}" in tensors), None)
            if scale is None:
                msg = f"{name} is stored as {_FP8} and its scales are not: neither {name}_scale_inv nor {name}_scale is there. Fetch the model whole."
                raise SourceRefused(msg)
            yield name, _scaled(name, info, scale, tensors[scale], release)


def _scaled(name: str, info: TensorInfo, scale: str, scales: TensorInfo, release: Release) -> TensorInfo:
    last = info.shape[-2:]
    block = tuple(size or whole for size, whole in zip(release.block[-len(last) :], last, strict=True)) if last else ()
    grid = _grid(info.shape, block)
    if scales.stored not in _SCALES or (scales.count != 1 and scales.shape != grid):
        msg = (
            f"{scale} is stored as {scales.stored} with the shape {list(scales.shape)}; floating point with the shape {list(grid)} is "
            f"needed, a scale for {' x '.join(map(str, block))} weights of {name} as config.json has it, or one for all. "
            "Fetch the model again, or ask the author."
        )
        raise SourceRefused(msg)
    return replace(info, dtype="BF16", coded=Coded(codes=name, scale=scale, scales=scales, block=block))


def _grid(shape: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales: as the weight's, its last dimensions counted in blocks, of which the last may be cut off."""
    whole = len(shape) - len(block)
    return (*shape[:whole], *(math.ceil(size / step) for size, step in zip(shape[whole:], block, strict=True)))


def _mxfp4(tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, TensorInfo]]:
    """gpt-oss' experts: codes [experts, rows, blocks, 16 bytes] and scales [experts, rows, blocks] for [experts, columns, rows]."""
    for codes, info in tensors.items():
        if not codes.endswith("_blocks"):
            continue
        name = codes.removesuffix("_blocks")
        scales = tensors.get(f"{name}_scales")
        shape = info.shape
        if (
            name in tensors
            or scales is None
            or (info.stored, scales.stored) != ("U8", "U8")
            or not _fits(shape, scales.shape)
        ):
            found = f"{scales.stored} {list(scales.shape)}" if scales else "nothing"
            msg = (
                f"{codes} is stored as {info.stored} {list(shape)} and {name}_scales as {found}; U8 [experts, rows, blocks, {_MX_BYTES}] and "
                f"U8 [experts, rows, blocks] are MXFP4, with no {name} beside them. Fetch the model again, or ask the author."
            )
            raise SourceRefused(msg)
        coded = Coded(codes=codes, scale=f"{name}_scales", scales=scales, block=())
        yield name, replace(info, dtype="BF16", shape=(shape[0], shape[2] * _MX_BLOCK, shape[1]), coded=coded)


def _int4(tensors: Mapping[str, TensorInfo], release: Release) -> Iterator[tuple[str, TensorInfo]]:
    """Codes [rows, columns / 8] in integers of 32 bits and scales [rows, groups] for [rows, columns]."""
    for codes, info in tensors.items():
        if not codes.endswith(".weight_packed"):
            continue
        name = codes.removesuffix("_packed")
        more = next((f"{name}{end}" for end in ("_zero_point", "_g_idx") if f"{name}{end}" in tensors), None)
        if info.stored != "I32" or len(info.shape) != 2 or name in tensors or more:
            msg = f"{codes} is stored as {info.stored} {list(info.shape)}{f' beside {more}' if more else ''}; I32 [rows, columns / 8] is W4A16 as it is read, with no {name} beside it and one zero point for all. Give the original model."
            raise SourceRefused(msg)
        scale = f"{name}_scale"
        if scale not in tensors:
            msg = f"{codes} is there and its scales are not: {scale} is missing. Fetch the model whole."
            raise SourceRefused(msg)
        whole = replace(info, shape=(info.shape[0], info.shape[1] * _IN_AN_INTEGER))
        found = _scaled(name, whole, scale, tensors[scale], release)
        assert found.coded  # noqa: S101 -- as `_scaled` makes it
        yield name, replace(found, coded=replace(found.coded, codes=codes))


def _fits(codes: tuple[int, ...], scales: tuple[int, ...]) -> bool:
    return len(codes) == 4 and codes[:3] == scales and codes[3] == _MX_BYTES
