"""The first stage: what a snapshot holds, whole or of headers alone, and what the variants of it would come to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hubbot.child.device import settle_device
from hubbot.child.messages import Price, SurveyAnswer, SurveyQuestion
from hubbot.child.source import describe, examine, facts_of
from hubbot.domain import Source, Variant
from hubbot.environment import PROCESS
from hubbot.errors import Unsupported, UnsupportedShape
from hubbot.formats import costs_of, overflows_of, weighed_by_gradients
from hubbot.formats.names import parse_wanted
from hubbot.formats.protocol import Cost, large_notes
from hubbot.model import ModelFacts, check_finite
from hubbot.model.architectures import sees_images
from hubbot.model.own_tokenizer import loading_once
from hubbot.planning.needs import shapes_of
from hubbot.planning.presets import Costs, resolve
from hubbot.settings import Settings

__all__ = ["survey"]


def survey(question: SurveyQuestion) -> SurveyAnswer:
    """Describe a model and size its variants; what cannot be made is told with its reason. Raises what the intake refuses.

    No weight is fetched for it. Those of a local folder are looked at, for values that are no numbers or too large.
    """
    with loading_once():
        return _surveyed(question.source, question.settings, question.work)


def _surveyed(source: Source, settings: Settings, work: Path) -> SurveyAnswer:
    facts = facts_of(source, settings, work)
    wanted = parse_wanted(settings.variants)
    weighed = weighed_by_gradients([one.variant for one in wanted], settings.model_dump(mode="json"))
    facts = examine(facts, gradients=bool(weighed))
    description = describe(facts)
    PROCESS["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a plan asks the driver for a GPU and starts no CUDA
    described = description.of(source)
    large = {} if source.repo else check_finite(facts.folder, facts)  # a folder's weights are here already
    told: list[Cost | Unsupported] = []

    def costs(variants: Sequence[Variant]) -> Costs:
        found = costs_of(variants, described, facts, work / "plan", settings)
        told.extend(found.values())
        makeable = [variant for variant in variants if isinstance(found[variant.name], Cost)]
        lost = overflows_of(makeable, described, facts, work / "large", settings, large)
        return found | {name: Unsupported(why) for name, why in lost.items()}

    chosen = resolve(wanted, costs, described)
    return SurveyAnswer(
        description=description,
        shapes=shapes_of(facts),
        device=settle_device(settings.device),
        variants=tuple(variant.name for variant in chosen.variants),
        prices={name: _price(cost) for name, cost in chosen.costs.items() if isinstance(cost, Cost)},
        refused={name: why for name, why in chosen.costs.items() if isinstance(why, Unsupported)},
        notes=(*chosen.notes, *large_notes(large), *facts.notes),
        lasting=_lasting(facts, told),
    )


def _lasting(facts: ModelFacts, told: Sequence[Cost | Unsupported]) -> bool:
    """Whether the answer is sure to be the same again: nothing in it may come from a tool that ran out of time or memory.

    That shows as a refusal, other than for a shape; as a conversation that its template did not write; as the note on images that
    are left out; or not at all, where the converter is asked again without prediction blocks.
    """
    return (
        all(isinstance(one, Cost | UnsupportedShape) for one in told)
        and bool(facts.conversation or not facts.chat_template)
        and not facts.prediction
        and not (sees_images(facts.architecture) and any(isinstance(one, Cost) and one.note for one in told))
    )


def _price(cost: Cost) -> Price:
    return Price(
        file_bytes=cost.file_bytes,
        weight_bytes=cost.weight_bytes,
        bits_per_weight=cost.bits_per_weight,
        note=cost.note,
        probes=cost.probes,
    )
