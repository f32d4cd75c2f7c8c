"""The GPTQ family: every variant from one set of Hessians."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from hubbot.domain import Family, Gptq, Source
from hubbot.errors import Unsupported, UnsupportedShape
from hubbot.formats.folder import VariantFolder, folder_cost, to_json
from hubbot.formats.gptq import checkpoint
from hubbot.formats.gptq.checkpoint import GptqTensor
from hubbot.formats.gptq.experts import even_statistics, note_of, seldom_seen
from hubbot.formats.gptq.solver import Curvature, prepare, solve
from hubbot.formats.linears import Linear, Linears, find_linears
from hubbot.formats.protocol import Cost, Encoded, InputStatistics, Needs, VariantFiles
from hubbot.formats.shards import TensorSpec
from hubbot.model import ModelFacts
from hubbot.model.parts import Part
from hubbot.settings import GptqSettings

__all__ = ["GptqFormat", "costs"]


def costs(
    variants: Sequence[Gptq], facts: ModelFacts, source: Source, settings: GptqSettings
) -> dict[str, Cost | Unsupported]:
    """Exact sizes, before any weight is read; UnsupportedShape, naming the tensor, of a layout that cannot hold it.

    Raises Unsupported for other blocks than those of linear layers.
    """
    linears = _chosen(find_linears(facts), settings)
    found: dict[str, Cost | Unsupported] = {}
    for variant in variants:
        try:
            checkpoint.check_shapes(linears.values(), variant)
        except UnsupportedShape as error:
            found[variant.name] = error
            continue
        specs = [spec for name in facts.tensors for spec in _specs(name, facts, linears, variant)]
        found[variant.name] = folder_cost(specs, facts, source, _texts(variant, facts, settings), settings.shard_size)
    return found


def _specs(name: str, facts: ModelFacts, linears: Mapping[str, Linear], variant: Gptq) -> list[TensorSpec]:
    if name in linears:
        return checkpoint.specs(linears[name], variant)
    info = facts.tensors[name]
    return [TensorSpec(name, info.dtype, info.shape)]


def _chosen(linears: Linears, settings: GptqSettings) -> dict[str, Linear]:
    """The layers to quantize, by the checkpoint name of their weight."""
    if linears.stacked:
        msg = (
            f"The checkpoint stores all experts of a block as one tensor ({linears.stacked[0]}), and GPTQ's readers want a "
            "matrix for each. Leave GPTQ variants out for this model."
        )
        raise Unsupported(msg)
    chosen = linears.by_name
    if settings.lm_head:
        if linears.head is None:
            msg = (
                "gptq.lm_head asks for a quantized output head, but this model's head is its embedding. "
                "Leave gptq.lm_head out of hubbot.toml."
            )
            raise Unsupported(msg)
        chosen[linears.head.name] = linears.head
    return chosen


def _texts(variant: Gptq, facts: ModelFacts, settings: GptqSettings) -> dict[str, str]:
    config = checkpoint.quantization_config(variant, settings.damping, lm_head=settings.lm_head)
    return {
        "config.json": to_json({**facts.config, "quantization_config": config}),
        "quantize_config.json": to_json(config),
    }


class GptqFormat:
    """`Format` of the GPTQ variants.

    work: where parts wait, one folder a variant. out: gets `gptq/<variant name>`.
    Raises UnsupportedShape where a layout cannot hold a layer, Unsupported as `costs` does.
    """

    family = Family.GPTQ
    needs = Needs.HESSIAN

    def __init__(
        self,
        *,
        variants: Iterable[Gptq],
        source: Source,
        facts: ModelFacts,
        work: Path,
        out: Path,
        settings: GptqSettings,
    ) -> None:
        self.variants = tuple(variants)
        self._damping = settings.damping
        self._linears = _chosen(find_linears(facts), settings)
        for variant in self.variants:
            checkpoint.check_shapes(self._linears.values(), variant)
        self._folders = {
            variant.name: VariantFolder(
                source=source,
                facts=facts,
                parts=work / "gptq" / variant.name,
                out=out / "gptq" / variant.name,
                texts=_texts(variant, facts, settings),
                shard_size=settings.shard_size,
            )
            for variant in self.variants
        }

    def holds(self, part: Part) -> bool:
        return all(folder.holds(part) for folder in self._folders.values())

    def encode(
        self, part: Part, weights: Mapping[str, torch.Tensor], statistics: Mapping[str, InputStatistics]
    ) -> Mapping[str, Mapping[str, Encoded]]:
        encoded: dict[str, dict[str, GptqTensor]] = {variant.name: {} for variant in self.variants}
        stored: dict[str, dict[str, torch.Tensor]] = {variant.name: {} for variant in self.variants}
        notes: dict[str, list[str]] = {variant.name: [] for variant in self.variants}
        errors: dict[str, dict[str, float]] = {variant.name: {} for variant in self.variants}
        for name in part.tensors:
            if name not in self._linears:
                for tensors in stored.values():
                    tensors[name] = weights[name]
        here = [self._linears[name] for name in part.tensors if name in self._linears]
        seldom = seldom_seen(here, statistics)
        known = {**statistics, **even_statistics(seldom, like=statistics)}
        for names in _sharing_inputs(here, known):
            curvatures = _Curvatures(_hessian(names[0], known), self._damping)
            for name in names:
                weight = weights[name]
                for variant in self.variants:
                    solution = solve(weight, curvatures.of(variant), variant)
                    tensor = checkpoint.pack(solution, variant)
                    encoded[variant.name][name] = tensor
                    stored[variant.name] |= tensor.named(name)
                    errors[variant.name][name] = solution.error
                    if solution.damping != self._damping:
                        notes[variant.name].append(f"damping rose to {solution.damping:g} in {name}")
        for key, folder in self._folders.items():
            told = [*notes[key], *note_of(part, here, seldom)]
            folder.store(part, stored[key], covers=part.tensors, notes=told, errors=errors[key])
        return encoded

    def finish(self) -> Mapping[str, VariantFiles]:
        return {name: folder.finish() for name, folder in self._folders.items()}


def _hessian(name: str, statistics: Mapping[str, InputStatistics]) -> torch.Tensor:
    found = statistics.get(name)
    if found is None or found.hessian is None:
        msg = (
            f"No calibration inputs were seen for {name}, so GPTQ cannot round it. A layer that the calibration text "
            "never reaches cannot be quantized this way; leave GPTQ variants out for this model."
        )
        raise Unsupported(msg)
    return found.hessian


def _sharing_inputs(linears: Sequence[Linear], statistics: Mapping[str, InputStatistics]) -> list[list[str]]:
    """Layers with the same inputs, as query, key and value have, together: a Hessian is factored once for them.

    Experts share a Hessian only where the calibration gave them one object: comparing hundreds would take longer.
    """
    together: list[list[str]] = []
    by_object: dict[int, list[str]] = {}
    for linear in linears:
        hessian = _hessian(linear.name, statistics)
        group = by_object.get(id(hessian))
        if group is None and not linear.expert:
            group = next((known for known in together if torch.equal(_hessian(known[0], statistics), hessian)), None)
        if group is None:
            group = by_object[id(hessian)] = []
            together.append(group)
        group.append(linear.name)
    return together


class _Curvatures:
    """One Hessian, made ready for every pair of group size and order that a variant asks for, once each."""

    def __init__(self, hessian: torch.Tensor, damping: float) -> None:
        self._hessian = hessian
        self._damping = damping
        self._known: dict[tuple[int, bool], Curvature] = {}

    def of(self, layout: Gptq) -> Curvature:
        key = (layout.group_size, layout.act_order)
        if key not in self._known:
            self._known[key] = prepare(self._hessian, layout, self._damping)
        return self._known[key]
