"""The `gptq` checkpoint format: tensor names, quantization_config, shapes that it can hold.

As transformers 5.23, GPTQModel 7.7 and vLLM read it: a linear layer `x.weight` [out, in] becomes
`x.qweight` int32 [in * bits / 32, out], `x.qzeros` int32 [groups, out * bits / 32], `x.scales` float16
[groups, out] and `x.g_idx` int32 [in].

Two versions differ in the zero points. `gptq` stores them less one, which cannot say 0: readers that
add the one back to a packed word would carry into its neighbour. Symmetric variants, whose zero point
is always the middle, use it, because every reader knows it. `gptq_v2` stores them as they are; asymmetric
variants use that, and GPTQModel refuses asymmetric files of version 1 from any writer but itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from hubbot import __version__
from hubbot.domain import Gptq
from hubbot.formats.gptq.choice import Choice
from hubbot.formats.gptq.packing import pack_codes, pack_zeros, packed_rows, unpack_codes, unpack_zeros
from hubbot.formats.gptq.solver import Solution
from hubbot.formats.linears import Linear
from hubbot.formats.shards import TensorSpec

__all__ = ["GptqTensor", "named", "pack", "quantization_config", "specs", "stem"]

# Where transformers (optimum 2.3) looks for the decoder blocks unless it is told.
_KNOWN_STACKS = frozenset(
    "transformer.h model.decoder.layers gpt_neox.layers model.layers model.language_model.layers".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqTensor:
    """A weight as the checkpoint holds it."""

    bits: int
    zero_offset: int  # what readers add to the stored zero points: 1 in `gptq`, 0 in `gptq_v2`
    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor
    g_idx: torch.Tensor

    def decode(self) -> torch.Tensor:
        """float32 [out, in], each value rounded to float16 as by readers that multiply in the scales' type."""
        group = self.g_idx.long()
        zeros = unpack_zeros(self.qzeros, self.bits).to(torch.int16) + self.zero_offset
        steps = unpack_codes(self.qweight, self.bits).to(torch.int16) - zeros[group]
        return (steps * self.scales[group]).t().contiguous().float()  # a step of at most nine bits: rounded once


def pack(solution: Solution, layout: Gptq) -> GptqTensor:
    offset = 1 if layout.symmetric else 0
    return GptqTensor(
        bits=layout.bits,
        zero_offset=offset,
        qweight=pack_codes(solution.codes, layout.bits),
        qzeros=pack_zeros(solution.zeros - offset, layout.bits),
        scales=solution.scales,
        g_idx=solution.group_of,
    )


def stem(weight_name: str) -> str:
    return weight_name.removesuffix(".weight")


def named(tensor: GptqTensor, weight_name: str, stored: torch.dtype) -> dict[str, torch.Tensor]:  # noqa: ARG001
    """Checkpoint name -> tensor. stored: the source's type, which this format does not keep."""
    base = stem(weight_name)
    return {
        f"{base}.qweight": tensor.qweight,
        f"{base}.qzeros": tensor.qzeros,
        f"{base}.scales": tensor.scales,
        f"{base}.g_idx": tensor.g_idx,
    }


def specs(name: str, linear: Linear, layout: Gptq, stored: str) -> list[TensorSpec]:  # noqa: ARG001 - for other containers
    """What a linear layer's weight turns into. name: of the weight. stored: the source's type."""
    rows, columns, bits = linear.out_features, linear.in_features, layout.bits
    groups = 1 if layout.group_size == -1 else columns // layout.group_size
    base = stem(name)
    return [
        TensorSpec(f"{base}.qweight", "I32", (packed_rows(columns, bits), rows)),
        TensorSpec(f"{base}.qzeros", "I32", (groups, packed_rows(rows, bits))),
        TensorSpec(f"{base}.scales", "F16", (groups, rows)),
        TensorSpec(f"{base}.g_idx", "I32", (columns,)),
    ]


def quantization_config(layout: Gptq, damping: float, choice: Choice, *, lm_head: bool) -> dict[str, Any]:
    """What stands in quantize_config.json and in config.json under `quantization_config`."""
    return {
        "bits": layout.bits,
        "group_size": layout.group_size,
        "desc_act": layout.act_order,
        "act_group_aware": not layout.act_order,
        "static_groups": False,
        "sym": layout.symmetric,
        "true_sequential": False,
        "damp_percent": damping,
        "lm_head": lm_head,
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if layout.symmetric else "gptq_v2",
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"hubbot:{__version__}"], "damp_percent": damping},
        **_left_out(choice),
        **({} if choice.stack in _KNOWN_STACKS else {"block_name_to_quantize": choice.stack}),
    }


def _left_out(choice: Choice) -> dict[str, Any]:
    """Layers that stay as they are: GPTQModel and vLLM are told those, transformers all others."""
    patterns = [rf"-:.*\.{kind}$" for kind in choice.kept_kinds]
    patterns += [rf"-:{re.escape(path)}\." for path in choice.predicting]
    told = {"modules_in_block_to_quantize": [list(choice.rounded_kinds)]} if choice.kept else {}
    return {"dynamic": {pattern: {} for pattern in patterns}, **told} if patterns else {}
