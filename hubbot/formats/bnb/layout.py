"""What a bitsandbytes folder will hold, told from the headers of the source: no bitsandbytes, which takes seconds to import."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from hubbot.domain import Bnb, Source
from hubbot.errors import Unsupported
from hubbot.formats.folder import folder_cost, to_json
from hubbot.formats.linears import Linear, Linears, find_linears
from hubbot.formats.protocol import Cost
from hubbot.formats.shards import TensorSpec
from hubbot.formats.staying import LENT, TAKEN, note_on_staying
from hubbot.model import ModelFacts
from hubbot.settings import BnbSettings

__all__ = [
    "BLOCK",
    "SCALES_PER_BLOCK",
    "costs",
    "has_mean_scales",
    "note_on",
    "quantized_linears",
    "specs_of",
    "texts_of",
]

BLOCK = 64  # weights that share a scale
SCALES_PER_BLOCK = 256  # scales that share a scale of their own under double quantization
_STATE = ".quant_state.bitsandbytes__"
_COMPUTE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TYPICAL_MEAN = 0.05205090716481209  # of a layer's scales; only its number of digits matters here


def costs(
    variants: Sequence[Bnb], facts: ModelFacts, source: Source, settings: BnbSettings
) -> dict[str, Cost | Unsupported]:
    """Sizes before any weight is read: weight bytes are exact; files may differ by a few bytes a layer,
    because the text of a quantization state holds a number with as many digits as it has.

    Raises Unsupported for other blocks than those of linear layers.
    """
    linears = quantized_linears(facts)
    deep = next((linear for linear in linears.blocks if linear.deep), None)
    found: dict[str, Cost | Unsupported] = {}
    for variant in variants:
        if variant.kind == "int8" and deep:
            found[variant.name] = _too_deep(variant, deep)
            continue
        specs = specs_of(variant, facts, linears, settings)
        texts = texts_of(variant, facts, linears, settings)
        cost = folder_cost(specs, facts, source, texts, settings.shard_size)
        found[variant.name] = replace(cost, note=note_on(linears))
    return found


def note_on(linears: Linears) -> str | None:
    """What plan and record say of the layers of blocks that stay at 16 bits."""
    of = (*linears.blocks, *linears.taken, *linears.lent)
    staying = ((linears.taken, TAKEN), (linears.lent, LENT))
    return "; ".join(filter(None, (note_on_staying(layers, why, of=of) for layers, why in staying))) or None


def _too_deep(variant: Bnb, linear: Linear) -> Unsupported:
    msg = (
        f"{linear.module} is given tensors of more than three dimensions, and bitsandbytes 0.50 stops at those in layers of int8. "
        f"Take bnb-nf4, or leave {variant.name} out for this model."
    )
    return Unsupported(msg)


def quantized_linears(facts: ModelFacts) -> Linears:
    """Those that transformers has bitsandbytes compute: no experts and no classes of the architecture's own.

    Raises Unsupported for a mixture of experts, and where nothing is left.
    """
    everything = find_linears(facts)
    own = [linear for linear in everything.blocks if linear.own_class]
    cut = [piece for piece in everything.pieces if not piece.expert]
    found = replace(everything, blocks=tuple(linear for linear in (*everything.blocks, *cut) if not linear.own_class))
    if own and not found.blocks:
        msg = (
            f"{own[0].module} and all other layers of {facts.architecture}'s blocks are of a class of its own, and transformers "
            "has bitsandbytes compute plain linear layers alone. Leave bitsandbytes variants out for this model."
        )
        raise Unsupported(msg)
    experts = [linear.name for linear in found.blocks if linear.expert] or list(found.stacked)
    if not experts:
        return found
    held, layers = _weights(experts, facts), _weights({linear.tensor for linear in found.blocks} | {*experts}, facts)
    msg = (
        f"{held / layers:.0%} of the weights in the layers of {facts.architecture}'s blocks are experts such as {experts[0]}. "
        "transformers keeps those as one tensor a block, which bitsandbytes leaves at 16 bits. "
        "Leave bitsandbytes variants out for this model."
    )
    raise Unsupported(msg)


def _weights(names: Iterable[str], facts: ModelFacts) -> int:
    return sum(facts.tensors[name].count for name in names)


def has_mean_scales(variant: Bnb, settings: BnbSettings) -> bool:
    """Whether the text of a quantization state holds the mean of a layer's scales, digit by digit."""
    return variant.kind != "int8" and settings.double_quant


def specs_of(
    variant: Bnb,
    facts: ModelFacts,
    linears: Linears,
    settings: BnbSettings,
    mean_scales: Mapping[str, float] = MappingProxyType({}),
) -> list[TensorSpec]:
    """All tensors of a folder. mean_scales: of the layers, by the names of their weights; without them, texts may be a few bytes longer or shorter."""
    held, found = linears.held, []
    for name, info in facts.tensors.items():
        if name not in held:
            found.append(TensorSpec(name, info.dtype, info.shape))
        for linear in held.get(name, ()):
            found += _of_layer(linear, info.dtype, variant, settings, mean_scales.get(linear.name, _TYPICAL_MEAN))
    return found


def _of_layer(linear: Linear, dtype: str, variant: Bnb, settings: BnbSettings, mean_scale: float) -> list[TensorSpec]:
    """dtype: as the weight is stored."""
    name, rows, columns = linear.name, linear.out_features, linear.in_features
    module = name.removesuffix(".weight")
    if variant.kind == "int8":
        return [
            TensorSpec(name, "I8", (rows, columns)),
            TensorSpec(f"{module}.SCB", "F32", (rows,)),
            TensorSpec(f"{module}.weight_format", "U8", ()),
        ]
    blocks = -(-rows * columns // BLOCK)
    state: dict[str, Any] = {
        "quant_type": variant.kind, "blocksize": BLOCK, "dtype": _COMPUTE[dtype], "shape": (rows, columns)
    }  # fmt: skip
    specs = [
        TensorSpec(name, "U8", (-(-rows * columns // 2), 1)),
        TensorSpec(f"{name}.quant_map", "F32", (16,)),
        TensorSpec(f"{name}.absmax", "U8" if settings.double_quant else "F32", (blocks,)),
    ]
    if has_mean_scales(variant, settings):
        state |= {
            "nested_blocksize": SCALES_PER_BLOCK, "nested_dtype": "float32", "nested_offset": mean_scale
        }  # fmt: skip
        specs.append(TensorSpec(f"{name}.nested_absmax", "F32", (-(-blocks // SCALES_PER_BLOCK),)))
        specs.append(TensorSpec(f"{name}.nested_quant_map", "F32", (256,)))
    return [*specs, TensorSpec(f"{name}{_STATE}{variant.kind}", "U8", (len(json.dumps(state)),))]


def texts_of(variant: Bnb, facts: ModelFacts, linears: Linears, settings: BnbSettings) -> dict[str, str]:
    four = variant.kind != "int8"
    dtypes = {facts.tensors[linear.tensor].dtype for linear in linears.blocks}
    head = (linears.head_module,) if linears.head_module else ()
    config = {
        "_load_in_4bit": four,
        "_load_in_8bit": not four,
        "bnb_4bit_compute_dtype": _COMPUTE[min(dtypes)] if four else "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": variant.kind if four else "fp4",
        "bnb_4bit_use_double_quant": four and settings.double_quant,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        # null stands for transformers' own choice: the output head and what is tied to it
        "llm_int8_skip_modules": [*head, *linears.outside] if linears.outside else None,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "quant_method": "bitsandbytes",
    }
    return {"config.json": to_json({**facts.config, "quantization_config": config})}
