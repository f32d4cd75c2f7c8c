"""The bitsandbytes family: nf4, fp4 and int8, stored as transformers' save_pretrained stores them.

So `from_pretrained` takes the files as they are and quantizes nothing. A weight is encoded by
bitsandbytes itself, with the arguments that transformers' loader gives it:

nf4, fp4   blocks of 64 weights share a scale; with double quantization the scales are 8-bit too.
           `x.weight` uint8 [n / 2, 1], `x.weight.absmax`, `x.weight.quant_map`, with double quantization
           `x.weight.nested_absmax` and `x.weight.nested_quant_map`, and `x.weight.quant_state.bitsandbytes__nf4`,
           JSON text of a few hundred bytes.
int8       one scale per output row. `x.weight` int8 [out, in], `x.SCB` float32 [out], `x.weight_format` uint8 [].
           Its runtime also rounds the inputs of each layer to 8 bits, so its logits differ from those
           of the decoded weights by more than rounding of sums does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# On CPUs with bfloat16 instructions it warns at import of a kernel that it would fetch from the Hub.
logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)

import bitsandbytes.functional as bnb
import torch

from hubbot.domain import Bnb, Family, Source
from hubbot.errors import Unsupported
from hubbot.formats.folder import VariantFolder, folder_cost, to_json
from hubbot.formats.linears import Linear, Linears, find_linears
from hubbot.formats.protocol import Cost, Encoded, InputStatistics, Needs, VariantFiles
from hubbot.formats.shards import TensorSpec
from hubbot.model import ModelFacts
from hubbot.model.parts import Part
from hubbot.settings import BnbSettings

__all__ = ["BnbFormat", "Int8Tensor", "PackedTensor", "costs", "encode_4bit", "encode_int8"]

BLOCK = 64  # weights that share a scale
SCALES_PER_BLOCK = 256  # scales that share a scale of their own under double quantization
_STATE = ".quant_state.bitsandbytes__"
_COMPUTE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TYPICAL_OFFSET = 0.05205090716481209  # mean scale of a layer; only its number of digits matters here


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """4-bit codes, two a byte, with what is needed to undo them."""

    data: torch.Tensor
    state: bnb.QuantState

    @classmethod
    def stored(cls, data: torch.Tensor, state: dict[str, torch.Tensor]) -> PackedTensor:
        """state: what lies beside the codes in a checkpoint, without the weight's name."""
        return cls(data, bnb.QuantState.from_dict(state, device=torch.device("cpu")))

    def decode(self) -> torch.Tensor:
        """float32 [out, in], each value rounded to the source's type as in the runtime."""
        weight: torch.Tensor = bnb.dequantize_4bit(self.data, self.state)
        return weight.to(torch.float32)

    def named(self, name: str) -> dict[str, torch.Tensor]:
        state = self.state.as_dict(packed=True)
        return {name: self.data} | {f"{name}.{key}": value for key, value in state.items()}


@dataclass(frozen=True, slots=True)
class Int8Tensor:
    """8-bit codes [out, in] and the largest magnitude of each row."""

    data: torch.Tensor
    largest: torch.Tensor

    def decode(self) -> torch.Tensor:
        """float32 [out, in]."""
        weight: torch.Tensor = bnb.int8_vectorwise_dequant(self.data, self.largest)
        return weight.to(torch.float32)

    def named(self, name: str) -> dict[str, torch.Tensor]:
        module = name.removesuffix(".weight")
        row_major = torch.zeros((), dtype=torch.uint8)
        return {name: self.data, f"{module}.SCB": self.largest, f"{module}.weight_format": row_major}


def encode_4bit(weight: torch.Tensor, kind: str, *, double_quant: bool) -> PackedTensor:
    """weight: [out, in] as stored in the source; kind: nf4 or fp4."""
    data, state = bnb.quantize_4bit(
        weight.contiguous(), blocksize=BLOCK, compress_statistics=double_quant, quant_type=kind
    )
    return PackedTensor(data, state)


def encode_int8(weight: torch.Tensor) -> Int8Tensor:
    """weight: [out, in]; rounded to float16 first, as bitsandbytes does when a model is loaded."""
    data, largest, _ = bnb.int8_vectorwise_quant(weight.contiguous().to(torch.float16))
    return Int8Tensor(data, largest)


def _encode(weight: torch.Tensor, variant: Bnb, settings: BnbSettings) -> PackedTensor | Int8Tensor:
    if variant.kind == "int8":
        return encode_int8(weight)
    return encode_4bit(weight, variant.kind, double_quant=settings.double_quant)


def costs(variants: Sequence[Bnb], facts: ModelFacts, source: Source, settings: BnbSettings) -> dict[str, Cost]:
    """Sizes before any weight is read: weight bytes are exact; files may differ by a few bytes a layer,
    because the text of a quantization state holds a number with as many digits as it has.

    Raises Unsupported for other blocks than those of linear layers.
    """
    linears = _linears(facts)
    found = {}
    for variant in variants:
        specs = [spec for name in facts.tensors for spec in _specs(name, facts, linears.by_name, variant, settings)]
        texts = _texts(variant, facts, linears, settings)
        found[variant.name] = folder_cost(specs, facts, source, texts, settings.shard_size)
    return found


def _linears(facts: ModelFacts) -> Linears:
    """Raises Unsupported for a mixture of experts: bitsandbytes and transformers quantize plain linear layers alone."""
    found = find_linears(facts)
    experts = [linear.name for linear in found.blocks if linear.expert] or list(found.stacked)
    if not experts:
        return found
    held = sum(facts.tensors[name].count for name in experts)
    msg = (
        f"{held / facts.parameters:.0%} of {facts.architecture}'s weights are experts such as {experts[0]}. transformers keeps "
        "those as one tensor a block, which bitsandbytes leaves at 16 bits, so that its files would hardly be smaller. "
        "Leave bitsandbytes variants out for this model."
    )
    raise Unsupported(msg)


def _specs(
    name: str, facts: ModelFacts, linears: Mapping[str, Linear], variant: Bnb, settings: BnbSettings
) -> list[TensorSpec]:
    info = facts.tensors[name]
    if name not in linears:
        return [TensorSpec(name, info.dtype, info.shape)]
    rows, columns = info.shape
    module = name.removesuffix(".weight")
    if variant.kind == "int8":
        return [
            TensorSpec(name, "I8", info.shape),
            TensorSpec(f"{module}.SCB", "F32", (rows,)),
            TensorSpec(f"{module}.weight_format", "U8", ()),
        ]
    blocks = -(-rows * columns // BLOCK)
    state: dict[str, Any] = {
        "quant_type": variant.kind, "blocksize": BLOCK, "dtype": _COMPUTE[info.dtype], "shape": (rows, columns)
    }  # fmt: skip
    specs = [
        TensorSpec(name, "U8", (-(-rows * columns // 2), 1)),
        TensorSpec(f"{name}.quant_map", "F32", (16,)),
        TensorSpec(f"{name}.absmax", "U8" if settings.double_quant else "F32", (blocks,)),
    ]
    if settings.double_quant:
        state |= {
            "nested_blocksize": SCALES_PER_BLOCK, "nested_dtype": "float32", "nested_offset": _TYPICAL_OFFSET
        }  # fmt: skip
        specs.append(TensorSpec(f"{name}.nested_absmax", "F32", (-(-blocks // SCALES_PER_BLOCK),)))
        specs.append(TensorSpec(f"{name}.nested_quant_map", "F32", (256,)))
    return [*specs, TensorSpec(f"{name}{_STATE}{variant.kind}", "U8", (len(json.dumps(state)),))]


def _texts(variant: Bnb, facts: ModelFacts, linears: Linears, settings: BnbSettings) -> dict[str, str]:
    four = variant.kind != "int8"
    dtypes = {facts.tensors[linear.name].dtype for linear in linears.blocks}
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


class BnbFormat:
    """`Format` of the bitsandbytes variants.

    work: where parts wait, one folder a variant. out: gets `bnb/<variant name>`.
    Raises as `costs` does.
    """

    family = Family.BNB
    needs = Needs.NOTHING

    def __init__(
        self,
        *,
        variants: Iterable[Bnb],
        source: Source,
        facts: ModelFacts,
        work: Path,
        out: Path,
        settings: BnbSettings,
    ) -> None:
        self.variants = tuple(variants)
        self._settings = settings
        linears = _linears(facts)
        self._linears = linears.by_name
        self._folders = {
            variant.name: VariantFolder(
                source=source,
                facts=facts,
                parts=work / "bnb" / variant.name,
                out=out / "bnb" / variant.name,
                texts=_texts(variant, facts, linears, settings),
                shard_size=settings.shard_size,
            )
            for variant in self.variants
        }

    def holds(self, part: Part) -> bool:
        return all(folder.holds(part) for folder in self._folders.values())

    def encode(
        self,
        part: Part,
        weights: Mapping[str, torch.Tensor],
        statistics: Mapping[str, InputStatistics],  # noqa: ARG002 - the protocol's
    ) -> Mapping[str, Mapping[str, Encoded]]:
        encoded: dict[str, dict[str, PackedTensor | Int8Tensor]] = {variant.name: {} for variant in self.variants}
        stored: dict[str, dict[str, torch.Tensor]] = {variant.name: {} for variant in self.variants}
        for name in part.tensors:
            weight = weights[name]
            for variant in self.variants:
                if name in self._linears:
                    tensor = _encode(weight, variant, self._settings)
                    encoded[variant.name][name] = tensor
                    stored[variant.name] |= tensor.named(name)
                else:
                    stored[variant.name][name] = weight
        for key, folder in self._folders.items():
            folder.store(part, stored[key], covers=part.tensors)
        return encoded

    def finish(self) -> Mapping[str, VariantFiles]:
        return {name: folder.finish() for name, folder in self._folders.items()}
