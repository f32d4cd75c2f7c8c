"""Layers rounded by the GPTQ solver: every variant from one set of Hessians, in one of two containers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from hubbot.domain import Family, Gptq, Named, Source
from hubbot.errors import Unsupported
from hubbot.formats.folder import FolderWriter, VariantFolder, finish_folders, folder_cost, to_json
from hubbot.formats.gptq import checkpoint
from hubbot.formats.gptq.checkpoint import GptqTensor
from hubbot.formats.gptq.choice import Choice
from hubbot.formats.gptq.definition import refuse_other_rotation
from hubbot.formats.gptq.end_to_end import NOTE, bands_of, is_weighed, refuse_undifferentiated, unweighed
from hubbot.formats.gptq.experts import even_statistics, note_of, seldom_seen
from hubbot.formats.gptq.layers import Layers, layers_of
from hubbot.formats.gptq.solver import Curvature, Solution, prepare, solve_together, solve_weighed
from hubbot.formats.linears import Linear
from hubbot.formats.protocol import Band, Cost, Encoded, InputStatistics, Needs, VariantFiles
from hubbot.formats.shards import TensorSpec
from hubbot.formats.stack import by_tensor
from hubbot.model import ModelFacts
from hubbot.model.parts import Part, PartKind
from hubbot.settings import GptqSettings

__all__ = ["GPTQ", "Container", "GptqFormat", "costs"]


class Solvable(Named, Protocol):
    """A variant whose codes the solver finds."""

    @property
    def layout(self) -> Gptq: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """How solved layers lie in a folder.

    named: tensor, name of the weight, the source's type -> checkpoint name -> tensor. specs: the same of a layer
    that is not solved yet. config: layout, settings, which layers are rounded -> `quantization_config`.
    apart: name of a file that holds the configuration too. head: whether the output head may be quantized. gptqmodel:
    whether that reads the files where experts or transposed layers are in them.
    """

    family: Family
    named: Callable[[GptqTensor, str, torch.dtype], dict[str, torch.Tensor]]
    specs: Callable[[str, Linear, Gptq, str], list[TensorSpec]]
    config: Callable[[Gptq, GptqSettings, Choice], dict[str, Any]]
    apart: str | None = None
    head: bool = False
    gptqmodel: bool = False


GPTQ = Container(
    family=Family.GPTQ,
    named=checkpoint.named,
    specs=checkpoint.specs,
    config=lambda layout, settings, choice: checkpoint.quantization_config(
        layout, settings.damping, choice, lm_head=settings.lm_head
    ),
    apart="quantize_config.json",
    head=True,
    gptqmodel=True,
)


def costs(
    variants: Sequence[Solvable],
    facts: ModelFacts,
    source: Source,
    settings: GptqSettings,
    container: Container = GPTQ,
) -> dict[str, Cost | Unsupported]:
    """Exact sizes, before any weight is read; UnsupportedShape, naming the tensor, of a layout that cannot hold the model.

    Raises Unsupported for other blocks than those of linear layers.
    """
    if container.gptqmodel:
        refuse_other_rotation(facts)
    layers = _layers(facts, settings, container)
    found: dict[str, Cost | Unsupported] = {}
    for variant in variants:
        try:
            choice = layers.choose(variant.layout)
            if variant.layout.end_to_end:
                refuse_undifferentiated(variant.name, facts)
        except Unsupported as error:
            found[variant.name] = error
            continue
        specs = [
            spec for name in facts.tensors for spec in _specs(name, facts, layers, choice, variant.layout, container)
        ]
        texts = _texts(variant.layout, facts, choice, settings, container)
        cost = folder_cost(specs, facts, source, texts, settings.shard_size)
        found[variant.name] = replace(cost, note=layers.note(choice))
    return found


def _specs(
    name: str, facts: ModelFacts, layers: Layers, choice: Choice, layout: Gptq, container: Container
) -> Iterator[TensorSpec]:
    info = facts.tensors[name]
    if name in layers.biases:
        for bias, cut in layers.biases[name].items():
            yield TensorSpec(bias, info.dtype, (info.shape[1] // cut.lots,))
    elif name not in layers.held:
        yield TensorSpec(layers.name(name), info.dtype, info.shape)
    for layer in layers.held.get(name, ()):
        called = layers.name(layer.name)
        if layer.name in choice.rounded:
            yield from container.specs(called, layer, layout, info.dtype)
        else:
            shape = (layer.out_features, layer.in_features) if layer.cut else info.shape
            yield TensorSpec(called, info.dtype, shape)


def _layers(facts: ModelFacts, settings: GptqSettings, container: Container) -> Layers:
    head = settings.lm_head and container.head
    return layers_of(facts, container.family, head=head, gptqmodel=container.gptqmodel)


def _texts(
    layout: Gptq, facts: ModelFacts, choice: Choice, settings: GptqSettings, container: Container
) -> dict[str, str]:
    config = container.config(layout, settings, choice)
    apart = {container.apart: to_json(config)} if container.apart else {}
    return {"config.json": to_json({**facts.config, "quantization_config": config}), **apart}


class GptqFormat:
    """`Format` of variants that the solver makes, in one container.

    beside: variants that another of these makes in the same sweep. What they share a factored Hessian with is solved for them
    here, while it is ready: they find the codes where they ask.
    work: where parts wait, one folder a variant. out: gets `<family>/<variant name>`.
    Raises UnsupportedShape where a layout cannot hold a layer, Unsupported as `costs` does.
    """

    def __init__(
        self,
        *,
        variants: Iterable[Solvable],
        beside: Iterable[Solvable] = (),
        source: Source,
        facts: ModelFacts,
        work: Path,
        out: Path,
        settings: GptqSettings,
        container: Container = GPTQ,
    ) -> None:
        self.family = container.family
        self.variants = tuple(variants)
        self._end_to_end = {variant.name for variant in self.variants if variant.layout.end_to_end}
        self.needs = Needs.GRADIENTS if self._end_to_end else Needs.HESSIAN
        self._container = container
        self._damping = settings.damping
        self._writer = FolderWriter()
        self._layers = _layers(facts, settings, container)
        self._choices = {variant.name: self._layers.choose(variant.layout) for variant in self.variants}
        self._rounded = {name: layer for choice in self._choices.values() for name, layer in choice.rounded.items()}
        ready = {_curvature_of(variant.layout) for variant in self.variants}
        self._beside = [
            (variant.layout, self._layers.choose(variant.layout))
            for variant in beside
            if _curvature_of(variant.layout) in ready
        ]
        self._folders = {
            variant.name: VariantFolder(
                source=source,
                facts=facts,
                parts=work / container.family / variant.name,
                out=out / container.family / variant.name,
                texts=_texts(variant.layout, facts, self._choices[variant.name], settings, container),
                shard_size=settings.shard_size,
            )
            for variant in self.variants
        }

    def holds(self, part: Part) -> bool:
        self._writer.wait()
        return all(folder.holds(part) for folder in self._folders.values())

    def encode(
        self, part: Part, weights: Mapping[str, torch.Tensor], statistics: Mapping[str, InputStatistics]
    ) -> Mapping[str, Mapping[str, Encoded]]:
        encoded: dict[str, dict[str, Encoded]] = {variant.name: {} for variant in self.variants}
        stored: dict[str, dict[str, torch.Tensor]] = {variant.name: {} for variant in self.variants}
        notes: dict[str, list[str]] = {variant.name: [] for variant in self.variants}
        errors: dict[str, dict[str, float]] = {variant.name: {} for variant in self.variants}
        for key, tensors in stored.items():
            for name in part.tensors:
                tensors |= self._layers.plain(name, weights[name], self._choices[key])
        held = [layer for name in part.tensors for layer in self._layers.held.get(name, ())]
        here = [layer for layer in held if layer.name in self._rounded]
        seldom = seldom_seen(here, statistics)
        known = {**statistics, **even_statistics(seldom, like=statistics)}
        for names in _sharing_inputs(here, known):
            layers = [self._rounded[name] for name in names]
            solver = _Solver(_hessian(layers[0], known), self._damping)
            upright = {layer.name: layer.upright(weights[layer.tensor]) for layer in layers}
            bands = bands_of(layers, known)
            for group in _by_curvature(self.variants):
                for variant in group:
                    rounded = self._choices[variant.name].rounded
                    for name, solved in solver.solved(upright, rounded, variant.layout, bands).items():
                        called, stored_as = self._layers.name(name), weights[rounded[name].tensor].dtype
                        encoded[variant.name][name] = rounded[name].as_stored(solved.tensor)
                        stored[variant.name] |= self._container.named(solved.tensor, called, stored_as)
                        errors[variant.name][name] = solved.error
                        if solved.damping != self._damping:
                            notes[variant.name].append(f"damping rose to {solved.damping:g} in {name}")
                for layout, choice in self._asked_beside(group, weighed=bool(bands)):
                    solver.solved(upright, choice.rounded, layout, bands)
        for key, folder in self._folders.items():
            told = [
                *(self._notes(key) if part.kind is PartKind.EMBEDDING else ()),
                *notes[key],
                *note_of(part, here, seldom),
                *(unweighed(part, self._choices[key], here, known) if key in self._end_to_end else ()),
            ]
            self._writer.store(folder, part, stored[key], covers=part.tensors, notes=told, errors=errors[key])
        return {key: by_tensor(found, self._rounded, weights) for key, found in encoded.items()}

    def _asked_beside(self, group: Sequence[Solvable], *, weighed: bool) -> Iterator[tuple[Gptq, Choice]]:
        """Of what is ready for these. Without gradients nobody may be left to ask for what they weigh."""
        for layout, choice in self._beside:
            if _curvature_of(layout) == _curvature_of(group[0].layout) and weighed >= layout.end_to_end:
                yield layout, choice

    def _notes(self, key: str) -> Iterator[str]:
        """What is to be known of a variant as a whole."""
        if key in self._end_to_end:
            yield NOTE
        if left := self._layers.note(self._choices[key]):
            yield left

    def finish(self) -> Mapping[str, VariantFiles]:
        return finish_folders(self._folders)


def _hessian(layer: Linear, statistics: Mapping[str, InputStatistics]) -> torch.Tensor:
    found = statistics.get(layer.statistics)
    if found is None or found.hessian is None:
        msg = (
            f"No calibration inputs were seen for {layer.name}, so GPTQ cannot round it. A layer that the calibration text "
            "never reaches cannot be quantized this way; leave GPTQ variants out for this model."
        )
        raise Unsupported(msg)
    return found.hessian


def _sharing_inputs(linears: Sequence[Linear], statistics: Mapping[str, InputStatistics]) -> list[list[str]]:
    """Layers with the same inputs, as query, key and value have, together: a Hessian is factored once for them.

    Experts share a Hessian only where the calibration gave them one object: comparing hundreds would take longer.
    """
    together: list[list[str]] = []
    first: dict[int, tuple[torch.Tensor, list[str]]] = {}
    for linear in linears:
        hessian = _hessian(linear, statistics)
        group = first.get(id(hessian), (hessian, None))[1]
        if group is None and not linear.expert:
            group = next((names for known, names in first.values() if torch.equal(known, hessian)), None)
        if group is None:
            group = []
            together.append(group)
        first.setdefault(id(hessian), (hessian, group))
        group.append(linear.name)
    return together


def _solved_together(weights: Mapping[str, torch.Tensor]) -> Iterator[Mapping[str, torch.Tensor]]:
    """Layers with the same inputs: on a card all at once, on a CPU one by one, for there it saves no time and takes memory."""
    if weights and all(weight.is_cuda for weight in weights.values()):
        yield weights
        return
    for name, weight in weights.items():
        yield {name: weight}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Solved:
    tensor: GptqTensor
    damping: float
    error: float


# What layers were solved to, by their Hessian and for as long as that lives: a layout that two containers hold is
# solved once. The sweep keeps the tensors through a part in any case.
_KNOWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _curvature_of(layout: Gptq) -> tuple[int, bool]:
    """What of a layout a Hessian is made ready for."""
    return layout.group_size, layout.act_order


def _by_curvature(variants: Sequence[Solvable]) -> list[list[Solvable]]:
    groups: dict[tuple[int, bool], list[Solvable]] = {}
    for variant in variants:
        groups.setdefault(_curvature_of(variant.layout), []).append(variant)
    return list(groups.values())


class _Solver:
    """One Hessian, made ready for one pair of group size and order at a time: two matrices as large as itself.

    Layouts of the same pair are to follow one another, for each pair is factored when its first is asked for.
    """

    def __init__(self, hessian: torch.Tensor, damping: float) -> None:
        self._hessian = hessian
        self._damping = damping
        self._ready: tuple[tuple[int, bool], Curvature] | None = None
        self._known: dict[tuple[str, Gptq, float], _Solved] = _KNOWN.setdefault(hessian, {})  # type: ignore[no-untyped-call]

    def solved(
        self, weights: Mapping[str, torch.Tensor], rounded: Collection[str], layout: Gptq, bands: Sequence[Band]
    ) -> dict[str, _Solved]:
        """Those of the layers that are to be rounded, but for what is known already.

        bands: of the layers' outputs; a layout that goes by them and finds none for a layer rounds it as its twin does.
        """
        plainly = replace(layout, end_to_end=False)
        goes_by = {name: layout if layout.end_to_end and is_weighed(name, bands) else plainly for name in weights}
        wanted = {name: (name, goes_by[name], self._damping) for name in weights if name in rounded}
        missing = {name: weights[name] for name, key in wanted.items() if key not in self._known}
        weighed = {name: weight for name, weight in missing.items() if goes_by[name].end_to_end}
        found: dict[str, Solution] = {}
        for together in _solved_together({name: missing[name] for name in missing if name not in weighed}):
            solved = solve_together(list(together.values()), self._curvature(layout), layout)
            found |= zip(together, solved, strict=True)
        if weighed:
            found |= zip(weighed, solve_weighed(weighed, bands, self._curvature(layout), layout), strict=True)
        for name, solution in found.items():
            tensor = checkpoint.pack(solution, layout)
            self._known[wanted[name]] = _Solved(tensor=tensor, damping=solution.damping, error=solution.error)
        return {name: self._known[key] for name, key in wanted.items()}

    def _curvature(self, layout: Gptq) -> Curvature:
        wanted = _curvature_of(layout)
        if self._ready is None or self._ready[0] != wanted:
            self._ready = None  # lets go of the last one first
            self._ready = wanted, prepare(self._hessian, layout, self._damping)
        return self._ready[1]
