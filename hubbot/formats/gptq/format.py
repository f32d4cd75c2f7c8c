"""Layers rounded by the GPTQ solver: every variant from one set of Hessians, in one of two containers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hubbot.domain import Family, Gptq, Source, Variant
from hubbot.errors import Unsupported
from hubbot.formats.folder import FolderWriter, VariantFolder, folder_cost, to_json
from hubbot.formats.gptq import checkpoint
from hubbot.formats.gptq.checkpoint import GptqTensor
from hubbot.formats.gptq.choice import Choice
from hubbot.formats.gptq.definition import refuse_other_rotation
from hubbot.formats.gptq.end_to_end import NOTE, bands_of, refuse_undifferentiated, unweighed
from hubbot.formats.gptq.experts import even_statistics, note_of, seldom_seen
from hubbot.formats.gptq.layers import Layers, layers_of
from hubbot.formats.gptq.sharing import Solvable, Solver, hessian_of, in_order_of_factors, sharing_inputs
from hubbot.formats.linears import Linear, find_linears
from hubbot.formats.protocol import Cost, Encoded, InputStatistics, Needs, VariantFiles
from hubbot.formats.shards import TensorSpec
from hubbot.formats.stack import by_tensor
from hubbot.model import ModelFacts
from hubbot.model.parts import Part, PartKind
from hubbot.settings import GptqSettings

__all__ = ["GPTQ", "Container", "GptqFormat", "costs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """How solved layers lie in a folder.

    named: tensor, name of the weight, the source's type -> checkpoint name -> tensor. specs: the same of a layer
    that is not solved yet. config: layout, settings, which layers are rounded -> `quantization_config`.
    apart: name of a file that holds the configuration too.
    """

    family: Family
    named: Callable[[GptqTensor, str, torch.dtype], dict[str, torch.Tensor]]
    specs: Callable[[str, Linear, Gptq, str], list[TensorSpec]]
    config: Callable[[Gptq, GptqSettings, Choice], dict[str, Any]]
    apart: str | None = None


GPTQ = Container(
    family=Family.GPTQ,
    named=checkpoint.named,
    specs=checkpoint.specs,
    config=lambda layout, settings, choice: checkpoint.quantization_config(
        layout, settings.damping, choice, lm_head=settings.lm_head
    ),
    apart="quantize_config.json",
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
    if container.family is Family.GPTQ:
        refuse_other_rotation(facts)
    layers = layers_of(find_linears(facts), facts, container.family, settings)
    found: dict[str, Cost | Unsupported] = {}
    for variant in variants:
        try:
            choice = layers.choose(variant.layout)
            if variant.layout.end_to_end:
                refuse_undifferentiated(variant.name, facts)
        except Unsupported as error:
            found[variant.name] = error
            continue
        specs = _specs(facts, layers, choice, variant.layout, container)
        texts = _texts(variant.layout, facts, choice, settings, container)
        cost = folder_cost(specs, facts, source, texts, settings.shard_size)
        found[variant.name] = replace(cost, note=layers.note(choice))
    return found


def _specs(facts: ModelFacts, layers: Layers, choice: Choice, layout: Gptq, container: Container) -> list[TensorSpec]:
    """All tensors of a folder."""
    return [spec for name in facts.tensors for spec in _specs_of(name, facts, layers, choice, layout, container)]


def _specs_of(
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


def _texts(
    layout: Gptq, facts: ModelFacts, choice: Choice, settings: GptqSettings, container: Container
) -> dict[str, str]:
    config = container.config(layout, settings, choice)
    apart = {container.apart: to_json(config)} if container.apart else {}
    return {"config.json": to_json({**facts.config, "quantization_config": config}), **apart}


class GptqFormat:
    """`Format` of variants that the solver makes, in one container.

    beside: variants that others make in the same sweep. The first of these that is given a part solves it for all that are
    solvable, whatever their container, factor by factor; the others find the codes where they ask.
    work: where the files are made, two folders a variant. out: gets `<family>/<variant name>`.
    Raises UnsupportedShape where a layout cannot hold a layer, Unsupported as `costs` does.
    """

    def __init__(
        self,
        *,
        variants: Iterable[Solvable],
        beside: Iterable[Variant] = (),
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
        others = [variant for variant in beside if isinstance(variant, Solvable)]
        self._solved_for = in_order_of_factors((*self.variants, *others))
        linears, families = find_linears(facts), {container.family, *(variant.family for variant in self._solved_for)}
        layers = {family: layers_of(linears, facts, family, settings) for family in families}
        self._layers = layers[container.family]
        self._choices = {each.name: layers[each.family].choose(each.layout) for each in self._solved_for}
        self._rounded = {
            name: layer for own in self.variants for name, layer in self._choices[own.name].rounded.items()
        }
        self._folders = {
            variant.name: VariantFolder(
                source=source,
                facts=facts,
                work=work / container.family / variant.name,
                out=out / container.family / variant.name,
                texts=_texts(variant.layout, facts, self._choices[variant.name], settings, container),
                specs=_specs(facts, self._layers, self._choices[variant.name], variant.layout, container),
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
        for layers in sharing_inputs(here, known):
            upright = {layer.name: layer.upright(weights[layer.tensor]) for layer in layers}
            solver = Solver(hessian_of(layers[0], known), self._damping, upright, bands_of(layers, known))
            for variant in self._solved_for:
                rounded = self._choices[variant.name].rounded
                if variant.name not in encoded:
                    solver.solve_ahead(variant.layout, rounded)
                    continue
                for name, solved in solver.solved(variant.layout, rounded).items():
                    called, stored_as = self._layers.name(name), weights[rounded[name].tensor].dtype
                    encoded[variant.name][name] = rounded[name].as_stored(solved.tensor)
                    stored[variant.name] |= self._container.named(solved.tensor, called, stored_as)
                    errors[variant.name][name] = solved.error
                    if solved.damping != self._damping:
                        notes[variant.name].append(f"damping rose to {solved.damping:g} in {name}")
        for key, folder in self._folders.items():
            told = [
                *(self._notes(key) if part.kind is PartKind.EMBEDDING else ()),
                *notes[key],
                *note_of(part, here, seldom),
                *(unweighed(part, self._choices[key], here, known) if key in self._end_to_end else ()),
            ]
            self._writer.store(folder, part, stored[key], covers=part.tensors, notes=told, errors=errors[key])
        return {key: by_tensor(found, self._rounded, weights) for key, found in encoded.items()}

    def _notes(self, key: str) -> Iterator[str]:
        """What is to be known of a variant as a whole."""
        if key in self._end_to_end:
            yield NOTE
        if left := self._layers.note(self._choices[key]):
            yield left

    def finish(self) -> Mapping[str, VariantFiles]:
        self._writer.wait()
        return {name: folder.finish() for name, folder in self._folders.items()}
