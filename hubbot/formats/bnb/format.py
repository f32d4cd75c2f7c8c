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

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# On CPUs with bfloat16 instructions it warns at import of a kernel that it would fetch from the Hub.
logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)

import bitsandbytes.functional as bnb
import torch

from hubbot.domain import Bnb, Family, Source
from hubbot.formats.bnb.layout import (
    BLOCK,
    SCALES_PER_BLOCK,
    has_mean_scales,
    note_on,
    quantized_linears,
    specs_of,
    texts_of,
)
from hubbot.formats.bnb.scales import mean_scales
from hubbot.formats.folder import FolderWriter, VariantFolder
from hubbot.formats.linears import Linear
from hubbot.formats.protocol import Encoded, InputStatistics, Needs, VariantFiles
from hubbot.formats.stack import by_tensor
from hubbot.model import ModelFacts
from hubbot.model.parts import Part, PartKind
from hubbot.settings import BnbSettings

__all__ = ["BnbFormat", "Int8Tensor", "PackedTensor", "encode_4bit", "encode_int8"]


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


def encode_4bit(
    weight: torch.Tensor, kind: str, *, double_quant: bool, mean_scale: float | None = None
) -> PackedTensor:
    """The bytes are those of bitsandbytes on a CPU.

    weight: [out, in] as stored in the source. kind: nf4 or fp4. mean_scale: of its blocks, where it is known.
    """
    on_card = weight.is_cuda and _card_agrees(kind, weight.device)
    return _encode_4bit(weight if on_card else weight.cpu(), kind, double_quant=double_quant, mean_scale=mean_scale)


def _encode_4bit(weight: torch.Tensor, kind: str, *, double_quant: bool, mean_scale: float | None) -> PackedTensor:
    """Codes where the weight lies; the scales' own scales by the CPU, whose mean of them has other last bits than a card's."""
    data, state = bnb.quantize_4bit(weight.contiguous(), blocksize=BLOCK, compress_statistics=False, quant_type=kind)
    if double_quant:
        scales = state.absmax.cpu()
        state.offset = scales.mean() if mean_scale is None else torch.tensor(mean_scale, dtype=torch.float32)
        state.absmax, state.state2 = bnb.quantize_blockwise(scales - state.offset, blocksize=SCALES_PER_BLOCK)
        state.nested = True
        state.to(weight.device)
    return PackedTensor(data, state)


@cache
def _card_agrees(kind: str, device: torch.device) -> bool:
    """Whether a card's codes are the CPU's; bitsandbytes 0.50 rounds fp4 by another rule there."""
    weight = torch.randn((512, 1024), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    ours, theirs = (
        _encode_4bit(each, kind, double_quant=True, mean_scale=None).named("w") for each in (weight.to(device), weight)
    )
    return all(torch.equal(ours[name].cpu(), value) for name, value in theirs.items())


def encode_int8(weight: torch.Tensor) -> Int8Tensor:
    """weight: [out, in]; rounded to float16 first, as bitsandbytes does when a model is loaded."""
    halves = weight.contiguous().to(torch.float16)
    if halves.is_cuda:  # bitsandbytes' CPU arithmetic: its own kernel for cards rounds some codes otherwise
        largest = halves.abs().amax(1).float()
        return Int8Tensor((halves * (127.0 / largest[:, None])).round().to(torch.int8), largest)
    data, largest, _ = bnb.int8_vectorwise_quant(halves)
    return Int8Tensor(data, largest)


class BnbFormat:
    """`Format` of the bitsandbytes variants.

    work: where the files are made, two folders a variant. out: gets `bnb/<variant name>`. device: what computes the mean
    scales of all layers, which takes a reading of the model before the first part.
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
        device: str = "cpu",
    ) -> None:
        self.variants = tuple(variants)
        self._settings = settings
        linears = quantized_linears(facts)
        self._linears, self._held = linears.by_name, linears.held
        self._note = note_on(linears)
        self._writer = FolderWriter()
        nested = any(has_mean_scales(variant, settings) for variant in self.variants)
        self._mean_scales = (
            mean_scales(facts, linears, torch.device(device), work / "bnb" / "mean_scales") if nested else {}
        )
        self._folders = {
            variant.name: VariantFolder(
                source=source,
                facts=facts,
                work=work / "bnb" / variant.name,
                out=out / "bnb" / variant.name,
                texts=texts_of(variant, facts, linears, settings),
                specs=specs_of(variant, facts, linears, settings, self._mean_scales),
                shard_size=settings.shard_size,
            )
            for variant in self.variants
        }

    def holds(self, part: Part) -> bool:
        self._writer.wait()
        return all(folder.holds(part) for folder in self._folders.values())

    def encode(
        self,
        part: Part,
        weights: Mapping[str, torch.Tensor],
        statistics: Mapping[str, InputStatistics],  # noqa: ARG002 - the protocol's
    ) -> Mapping[str, Mapping[str, Encoded]]:
        encoded: dict[str, dict[str, Encoded]] = {variant.name: {} for variant in self.variants}
        stored: dict[str, dict[str, torch.Tensor]] = {variant.name: {} for variant in self.variants}
        for name in part.tensors:
            weight = weights[name]
            for variant in self.variants:
                for linear in self._held.get(name, ()):
                    tensor = self._encode(linear, weight, variant)
                    encoded[variant.name][linear.name] = linear.as_stored(tensor)
                    stored[variant.name] |= tensor.named(linear.name)
                if name not in self._held:
                    stored[variant.name][name] = weight
        notes = [self._note] if self._note and part.kind is PartKind.EMBEDDING else []
        for key, folder in self._folders.items():
            self._writer.store(folder, part, stored[key], covers=part.tensors, notes=notes)
        return {key: by_tensor(found, self._linears, weights) for key, found in encoded.items()}

    def finish(self) -> Mapping[str, VariantFiles]:
        self._writer.wait()
        return {name: folder.finish() for name, folder in self._folders.items()}

    def _encode(self, linear: Linear, weight: torch.Tensor, variant: Bnb) -> PackedTensor | Int8Tensor:
        upright = linear.upright(weight)
        if variant.kind == "int8":
            return encode_int8(upright)
        mean_scale = self._mean_scales.get(linear.name)
        return encode_4bit(upright, variant.kind, double_quant=self._settings.double_quant, mean_scale=mean_scale)
