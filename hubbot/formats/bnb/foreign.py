"""bitsandbytes checkpoints made elsewhere, as tensors that decode."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hubbot.formats.bnb.format import Int8Tensor, PackedTensor
from hubbot.formats.protocol import Encoded
from hubbot.formats.stored import Checkpoint, Plain

__all__ = ["decoders"]


@dataclass(frozen=True, slots=True)
class _FourBit:
    checkpoint: Checkpoint
    name: str
    parts: tuple[str, ...]

    def decode(self) -> torch.Tensor:
        state = {part.removeprefix(f"{self.name}."): self.checkpoint[part] for part in self.parts}
        return PackedTensor.stored(self.checkpoint[self.name], state).decode()


@dataclass(frozen=True, slots=True)
class _EightBit:
    checkpoint: Checkpoint
    stem: str

    def decode(self) -> torch.Tensor:
        return Int8Tensor(self.checkpoint[f"{self.stem}.weight"], self.checkpoint[f"{self.stem}.SCB"]).decode()


def decoders(checkpoint: Checkpoint) -> dict[str, Encoded]:
    tensors: dict[str, Encoded] = {}
    parts_of: dict[str, list[str]] = {}  # weight -> what its quantization state is stored in
    for name in checkpoint.files:
        stem, found, _ = name.partition(".weight.")
        if found:
            parts_of.setdefault(f"{stem}.weight", []).append(name)
    for name in checkpoint.files:
        stem, _, kind = name.rpartition(".")
        if kind != "weight":
            if kind == "bias":
                tensors[name] = Plain(checkpoint, name)
            continue
        if name in parts_of:
            tensors[name] = _FourBit(checkpoint, name, tuple(parts_of[name]))
        elif f"{stem}.SCB" in checkpoint.files:
            tensors[name] = _EightBit(checkpoint, stem)
        else:
            tensors[name] = Plain(checkpoint, name)
    return tensors
