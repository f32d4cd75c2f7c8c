"""Probes for an allocation: the original with one group of matrices rounded, each a variant that a sweep measures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch

from hubbot.formats.gguf import codec
from hubbot.formats.gguf.allocation import NARROW, TYPES, Matrix, ggml_name
from hubbot.formats.gguf.converter import Captured, TensorFact
from hubbot.formats.gguf.cuda.codec import card_codecs
from hubbot.formats.gguf.cuda.rows import rounded as rounded_in
from hubbot.formats.gguf.imatrix import ImportanceEntry
from hubbot.formats.notes import write_json
from hubbot.formats.protocol import Encoded, InputStatistics, Needs, VariantFiles
from hubbot.model.parts import Part

__all__ = ["PROBE", "Probes", "matrices_of", "rounded"]

PROBE = "Q3_K"  # where a matrix may have it, else IQ4_NL: coarse enough to stand out of what float32 loses, fine enough for divergences to add up
_AT_ONCE = 2**24  # weights that are rounded together, so that no second copy of an embedding is held


def matrices_of(tensors: Sequence[Captured], kinds: Mapping[str, int], facts: Mapping[str, TensorFact]) -> list[Matrix]:
    """The matrices of a model that a mix may give any type. kinds: tensor -> its type in llama.cpp's own mix.

    Each is a checkpoint tensor, or one an expert, in one tensor of the GGUF, of the same columns, in a type of the mix that is a
    K-quant, or what llama.cpp puts in its place where 256 does not divide the width; what is stored transposed keeps
    its own. facts: of the checkpoint's tensors.
    """
    uses = Counter(leaf for tensor in tensors for leaf in tensor.leaves)
    found = []
    for tensor in tensors:
        numbers = {codec.type_named(ggml_name(name)): name for name in (NARROW if tensor.columns % 256 else TYPES)}
        alone = all(uses[leaf] == 1 for leaf in tensor.leaves)
        if kinds[tensor.name] in numbers and alone and _is_stacked(tensor, facts):
            sizes = {name: tensor.rows * codec.row_bytes(number, tensor.columns) for number, name in numbers.items()}
            found.append(Matrix(leaves=tuple(tensor.leaves), tensor=tensor.name, bytes=sizes))
    return found


def _is_stacked(tensor: Captured, facts: Mapping[str, TensorFact]) -> bool:
    """Whether it is one matrix of the checkpoint, of the same columns, or one of each expert."""
    shapes = {facts[leaf].shape for leaf in tensor.leaves}
    if len(tensor.shape) == 2:
        return len(tensor.leaves) == 1 and {shape[1:] for shape in shapes} == {tensor.shape[1:]}
    return len(tensor.shape) == 3 and len(tensor.leaves) == tensor.shape[0] and shapes == {tensor.shape[1:]}


@dataclass(frozen=True, slots=True)
class _Probe:
    name: str


@dataclass(frozen=True, slots=True)
class _Rounded:
    """A matrix as ggml's encoder rounds it, when it is asked for."""

    weight: torch.Tensor
    kind: str
    importance: np.ndarray | None

    def decode(self) -> torch.Tensor:
        found = torch.empty(self.weight.shape, device=self.weight.device)
        at_once = _rows(self.weight)
        for some, into in zip(self.weight.split(at_once), found.split(at_once), strict=True):  # type: ignore[no-untyped-call]
            into.copy_(rounded(some, self.kind, self.importance))
        return found


@dataclass(slots=True)
class Probes:
    """In the place of an encoder: a sweep measures every group rounded by itself, and nothing is written.

    folder: keeps part -> group -> type -> the squared error of its weights, so that a killed sweep goes on.
    """

    groups: Mapping[str, tuple[Matrix, ...]]
    folder: Path
    family: str = "probes"
    needs: Needs = Needs.SQUARES
    errors: dict[str, dict[str, dict[str, float]]] = field(init=False)

    def __post_init__(self) -> None:
        self.errors = json.loads(self._kept.read_text()) if self._kept.exists() else {}

    @property
    def _kept(self) -> Path:
        return self.folder / "errors.json"

    @property
    def variants(self) -> tuple[_Probe, ...]:
        return tuple(map(_Probe, self.groups))

    def holds(self, part: Part) -> bool:
        return part.name in self.errors

    def encode(
        self, part: Part, weights: Mapping[str, torch.Tensor], statistics: Mapping[str, InputStatistics]
    ) -> Mapping[str, Mapping[str, Encoded]]:
        found: dict[str, dict[str, Encoded]] = {name: {} for name in self.groups}
        known = part.name in self.errors
        for device in {weight.device for weight in weights.values()}:
            _compile(device, frozenset(kind for group in self.groups.values() for kind in group[0].bytes))
        errors = {} if known else self.errors.setdefault(part.name, {})
        for name, group in self.groups.items():
            for leaf in (leaf for matrix in group for leaf in matrix.leaves if leaf in part.tensors):
                importance = _importance(statistics.get(leaf))
                found[name][leaf] = _Rounded(weights[leaf], _probe(group), importance)
                if not known:
                    _compare(errors.setdefault(name, dict.fromkeys(group[0].bytes, 0.0)), weights[leaf], importance)
        write_json(self._kept, self.errors)
        return found

    def finish(self) -> Mapping[str, VariantFiles]:
        return {}

    def costs(self, divergence: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Group -> type -> nats. divergence: that was measured of each probe."""
        sums: dict[str, dict[str, float]] = {
            name: {
                kind: sum(part[name][kind] for part in self.errors.values() if name in part) for kind in group[0].bytes
            }
            for name, group in self.groups.items()
        }
        probed = {name: sums[name][_probe(group)] for name, group in self.groups.items()}
        return {
            name: {
                kind: divergence[name] * error / probed[name] if probed[name] else 0.0 for kind, error in errors.items()
            }
            for name, errors in sums.items()
        }


def _probe(group: Sequence[Matrix]) -> str:
    """The type in which a group is probed."""
    return PROBE if PROBE in group[0].bytes else NARROW[0]


@cache
def _compile(device: torch.device, kinds: frozenset[str]) -> None:
    """On a card the programs of all types at once, ahead of their first use."""
    if device.type == "cuda":
        card_codecs([_number(kind) for kind in sorted(kinds)], device)


def _compare(errors: dict[str, float], weight: torch.Tensor, importance: np.ndarray | None) -> None:
    """Add the squared error of a matrix in every type."""
    for rows in weight.split(_rows(weight)):  # type: ignore[no-untyped-call]
        for kind in errors:
            lost = rounded(rows, kind, importance) - rows
            errors[kind] += float(lost.square().sum(dtype=torch.float64))


def _rows(weight: torch.Tensor) -> int:
    return max(1, _AT_ONCE // weight.shape[-1])


def _importance(seen: InputStatistics | None) -> np.ndarray | None:
    if seen is None:
        return None
    return ImportanceEntry(sums=seen.squares.float().cpu().numpy(), tokens=seen.tokens).vector()


def rounded(rows: torch.Tensor, name: str, importance: np.ndarray | None) -> torch.Tensor:
    """Rows, any float [out, in], encoded as ggml does into the type of that name and decoded again: float32, where the rows lie."""
    return rounded_in(_number(name), rows.to(torch.float32).contiguous(), importance)


def _number(name: str) -> int:
    return codec.type_named(ggml_name(name))
