"""A small real format for tests of the sweep: weights rounded to int8 per row, written part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hubbot.domain import Family, Gguf, Variant
from hubbot.formats.protocol import Encoded, InputStatistics, Needs, VariantFiles
from hubbot.model.parts import Part, PartKind


@dataclass(frozen=True)
class Rounded:
    codes: torch.Tensor  # int8 [out, in]
    scale: torch.Tensor  # float32 [out, 1]

    def decode(self) -> torch.Tensor:
        return self.codes.float() * self.scale


class RoundingFormat:
    """Rounds every matrix to `levels` steps a side; `untouched` makes a variant that changes nothing."""

    family = Family.GGUF

    def __init__(self, out: Path, levels: dict[str, int | None], needs: Needs = Needs.HESSIAN) -> None:
        self.variants: tuple[Variant, ...] = tuple(Gguf(type=name) for name in levels)
        self.needs = needs
        self.seen: dict[str, InputStatistics] = {}
        self._levels = levels
        self._out = out

    def holds(self, part: Part) -> bool:
        written = (name for name, levels in self._levels.items() if levels is not None)
        return all((self._out / name / f"{part.name}.safetensors").exists() for name in written)

    def encode(
        self, part: Part, weights: Mapping[str, torch.Tensor], statistics: Mapping[str, InputStatistics]
    ) -> Mapping[str, Mapping[str, Encoded]]:
        if part.kind is PartKind.BLOCK and self.needs is not Needs.NOTHING:
            assert statistics, f"{part.name} came without statistics"
        self.seen.update(statistics)
        return {name: self._encode(name, levels, part, weights) for name, levels in self._levels.items()}

    def _encode(
        self, variant: str, levels: int | None, part: Part, weights: Mapping[str, torch.Tensor]
    ) -> dict[str, Encoded]:
        if levels is None:
            return {}
        made: dict[str, Rounded] = {}
        for name, weight in weights.items():
            if weight.ndim == 2:
                scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-8) / levels
                made[name] = Rounded((weight.float() / scale).round().to(torch.int8), scale)
        folder = self._out / variant
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: encoded.codes for name, encoded in made.items()}, folder / f"{part.name}.safetensors")
        return dict(made)

    def finish(self) -> Mapping[str, VariantFiles]:
        return {
            variant: VariantFiles(paths=tuple(sorted((self._out / variant).glob("*"))), weight_bytes=0)
            for variant in self._levels
        }


def decoded_checkpoint(folder: Path, levels: int) -> dict[str, torch.Tensor]:
    """What a whole model's weights are after rounding, computed without the sweep."""
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if weight.ndim == 2:
            scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-8) / levels
            weights[name] = (weight.float() / scale).round().to(torch.int8).float() * scale
    return weights
