from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hubbot.domain import Family, Source
from hubbot.formats.check import Reader, main
from hubbot.formats.folder import VariantFolder, folder_cost, to_json
from hubbot.formats.protocol import Cost, Encoded, InputStatistics, Needs, VariantFiles
from hubbot.formats.shards import TensorSpec
from hubbot.model import ModelFacts
from hubbot.model.parts import Part

SHARD = 5 * 10**9  # bytes


@dataclass(frozen=True)
class Half:
    weight: torch.Tensor

    def decode(self) -> torch.Tensor:
        return self.weight.float()


def _texts(facts: ModelFacts) -> dict[str, str]:
    return {"config.json": to_json({**facts.config, "dtype": "float16"})}


def _specs(facts: ModelFacts) -> list[TensorSpec]:
    return [TensorSpec(name, "F16", info.shape) for name, info in facts.tensors.items()]


def cost(source: Source, facts: ModelFacts) -> Cost:
    return folder_cost(_specs(facts), facts, source, _texts(facts), SHARD)


class RawFormat:
    family = Family("raw")
    needs = Needs.NOTHING

    def __init__(self, variants: Sequence[Any], source: Source, facts: ModelFacts, work: Path, out: Path) -> None:
        self.variants = tuple(variants)
        self._folders = {
            variant.name: VariantFolder(
                source=source,
                facts=facts,
                work=work / "raw" / variant.name,
                out=out / "raw" / variant.name,
                texts=_texts(facts),
                specs=_specs(facts),
                shard_size=SHARD,
            )
            for variant in variants
        }

    def holds(self, part: Part) -> bool:
        return all(folder.holds(part) for folder in self._folders.values())

    def encode(
        self, part: Part, weights: Mapping[str, torch.Tensor], statistics: Mapping[str, InputStatistics]
    ) -> Mapping[str, Mapping[str, Encoded]]:
        stored = {name: weights[name].to(torch.float16) for name in part.tensors}
        for folder in self._folders.values():
            folder.store(part, stored, covers=part.tensors)
        return {variant: {name: Half(weight) for name, weight in stored.items()} for variant in self._folders}

    def finish(self) -> Mapping[str, VariantFiles]:
        return {name: folder.finish() for name, folder in self._folders.items()}


def reader_of(folder: Path) -> Reader:
    return Reader()


if __name__ == "__main__":
    main(reader_of)
