"""compressed-tensors' `pack-quantized`: tensor names, `quantization_config`, and what was made elsewhere.

As compressed-tensors 0.17 to 0.20 and vLLM read it: a linear layer `x.weight` [out, in] becomes `x.weight_packed`
int32 [out, in * bits / 32], `x.weight_scale` [out, groups] in the model's type and `x.weight_shape` int64 [2];
asymmetric ones also have `x.weight_zero_point` int32 [out * bits / 32, groups]. Codes and zero points are stored
above zero, the lowest bits first, as in a GPTQ checkpoint: the words are those of its transposed tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hubbot.domain import Family, Gptq
from hubbot.errors import SourceRefused
from hubbot.formats.gptq.checkpoint import GptqTensor, stem
from hubbot.formats.gptq.choice import Choice
from hubbot.formats.gptq.format import Container
from hubbot.formats.gptq.packing import packed_rows, unpack_codes
from hubbot.formats.linears import Linear
from hubbot.formats.protocol import Encoded
from hubbot.formats.shards import TensorSpec
from hubbot.formats.stored import Checkpoint, Plain
from hubbot.settings import GptqSettings

__all__ = ["PACKED", "decoders"]

FORMAT = "pack-quantized"


def _named(tensor: GptqTensor, weight_name: str, stored: torch.dtype) -> dict[str, torch.Tensor]:
    base = stem(weight_name)
    rows, columns = tensor.qweight.shape[1], len(tensor.g_idx)
    found = {
        f"{base}.weight_packed": tensor.qweight.t().contiguous(),
        f"{base}.weight_scale": tensor.scales.t().contiguous().to(_scale_type(stored)),
        f"{base}.weight_shape": torch.tensor([rows, columns]),
    }
    if tensor.zero_offset == 0:  # asymmetric: zero points as they are
        found[f"{base}.weight_zero_point"] = tensor.qzeros.t().contiguous()
    return found


def _scale_type(stored: torch.dtype) -> torch.dtype:
    """The model's type, where it has 16 bits; scales are exact in both such types."""
    return stored if stored in (torch.float16, torch.bfloat16) else torch.float16


def _specs(name: str, linear: Linear, layout: Gptq, stored: str) -> list[TensorSpec]:
    rows, columns = linear.out_features, linear.in_features
    groups = 1 if layout.group_size == -1 else columns // layout.group_size
    base = stem(name)
    specs = [
        TensorSpec(f"{base}.weight_packed", "I32", (rows, packed_rows(columns, layout.bits))),
        TensorSpec(f"{base}.weight_scale", stored if stored in ("F16", "BF16") else "F16", (rows, groups)),
        TensorSpec(f"{base}.weight_shape", "I64", (2,)),
    ]
    if not layout.symmetric:
        specs.append(TensorSpec(f"{base}.weight_zero_point", "I32", (packed_rows(rows, layout.bits), groups)))
    return specs


def _config(layout: Gptq, _settings: GptqSettings, choice: Choice) -> dict[str, Any]:
    weights = {
        "type": "int",
        "num_bits": layout.bits,
        "symmetric": layout.symmetric,
        "strategy": "channel" if layout.group_size == -1 else "group",
        "group_size": None if layout.group_size == -1 else layout.group_size,
        "dynamic": False,
        "observer": "minmax",
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "format": FORMAT}},
        # the head too, which is a module even where it is the embedding
        "ignore": [
            *choice.outside,
            *(linear.module for linear in choice.kept),
            *(rf"re:{re.escape(path)}\..*" for path in choice.predicting),
        ],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


PACKED = Container(family=Family.PACKED, named=_named, specs=_specs, config=_config)


@dataclass(frozen=True, slots=True)
class _Stored:
    checkpoint: Checkpoint
    stem: str
    bits: int

    def decode(self) -> torch.Tensor:
        rows, columns = (int(size) for size in self.checkpoint[f"{self.stem}.weight_shape"])
        codes = unpack_codes(self.checkpoint[f"{self.stem}.weight_packed"].t(), self.bits)[:columns].float()
        scales = self.checkpoint[f"{self.stem}.weight_scale"].float().t()
        zero: float | torch.Tensor = 2 ** (self.bits - 1)
        if f"{self.stem}.weight_zero_point" in self.checkpoint.files:
            packed = self.checkpoint[f"{self.stem}.weight_zero_point"]
            zero = self._spread(unpack_codes(packed, self.bits)[:rows].float().t(), columns)
        weight = (codes - zero) * self._spread(scales, columns)
        return weight.to(torch.float16).float().t().contiguous()

    def _spread(self, per_group: torch.Tensor, columns: int) -> torch.Tensor:
        """[groups, out] -> [in, out]."""
        return per_group.repeat_interleave(columns // len(per_group), dim=0)


def decoders(checkpoint: Checkpoint, quantization: Mapping[str, Any]) -> dict[str, Encoded]:
    """The tensors of a folder that anybody made. Raises SourceRefused for another format of this container."""
    bits = _bits(quantization)
    tensors: dict[str, Encoded] = {}
    for name in checkpoint.files:
        base, _, kind = name.rpartition(".")
        if kind == "weight_packed":
            tensors[f"{base}.weight"] = _Stored(checkpoint, base, bits)
        elif kind not in ("weight_scale", "weight_shape", "weight_zero_point"):
            tensors[name] = Plain(checkpoint, name)
    return tensors


def _bits(quantization: Mapping[str, Any]) -> int:
    groups = quantization.get("config_groups")
    schemes = [scheme for scheme in groups.values() if isinstance(scheme, dict)] if isinstance(groups, dict) else []
    weights = [scheme["weights"] for scheme in schemes if isinstance(scheme.get("weights"), dict)]
    found = [each.get("num_bits") for each in weights]
    if quantization.get("format") != FORMAT or found not in ([4], [8]) or weights[0].get("actorder") == "group":
        msg = (
            f"quantization_config gives the format {ascii(quantization.get('format'))[:60]} with {ascii(found)[:60]} bits; of "
            f"compressed-tensors, {FORMAT} with one scheme of 4 or 8 bits is read here, its groups in the order of the columns."
        )
        raise SourceRefused(msg)
    return int(found[0])
