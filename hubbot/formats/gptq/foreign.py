"""GPTQ checkpoints made elsewhere, of either version, as tensors that decode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hubbot.errors import SourceRefused
from hubbot.formats.gptq.packing import unpack_codes, unpack_zeros
from hubbot.formats.protocol import Encoded
from hubbot.formats.stored import Checkpoint, Plain

__all__ = ["decoders"]


@dataclass(frozen=True, slots=True)
class _Gptq:
    checkpoint: Checkpoint
    stem: str
    bits: int
    zeros_less_one: bool

    def decode(self) -> torch.Tensor:
        qweight, qzeros, scales, group_of = (
            self.checkpoint[f"{self.stem}.{name}"] for name in ("qweight", "qzeros", "scales", "g_idx")
        )
        group = group_of.long()
        zeros = unpack_zeros(qzeros, self.bits).to(torch.float32) + (1 if self.zeros_less_one else 0)
        codes = unpack_codes(qweight, self.bits).to(torch.float32)
        weight = (codes - zeros[group]) * scales.to(torch.float32)[group]
        return weight.to(torch.float16).to(torch.float32).t().contiguous()


def decoders(checkpoint: Checkpoint, quantization: Mapping[str, Any]) -> dict[str, Encoded]:
    first_version = quantization.get("checkpoint_format", "gptq") != "gptq_v2"
    bits = quantization.get("bits")
    if bits not in (2, 3, 4, 8):
        msg = f"quantization_config gives {ascii(bits)[:60]} bits; GPTQ has 2, 3, 4 or 8. The artefact is damaged."
        raise SourceRefused(msg)
    tensors: dict[str, Encoded] = {}
    for name in checkpoint.files:
        stem, _, kind = name.rpartition(".")
        if kind == "qweight":
            tensors[f"{stem}.weight"] = _Gptq(checkpoint, stem, int(bits), first_version)
        elif kind not in ("qzeros", "scales", "g_idx"):
            tensors[name] = Plain(checkpoint, name)
    return tensors
