"""The first stage: what a snapshot holds, whole or of headers alone, and the plan that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hubbot.child.device import settle_device
from hubbot.child.messages import SurveyAnswer, SurveyQuestion
from hubbot.child.ranks import FOLDER
from hubbot.child.source import describe, examine, facts_of
from hubbot.domain import Variant
from hubbot.environment import PROCESS
from hubbot.errors import Unsupported
from hubbot.formats import costs_of, overflows_of, put_in_place, weighed_by_gradients
from hubbot.formats.names import parse_wanted
from hubbot.formats.protocol import Cost, large_notes
from hubbot.machine import Machine, measure_machine
from hubbot.model import check_finite
from hubbot.planning.needs import with_text
from hubbot.planning.plan import device_elsewhere, plan
from hubbot.planning.presets import Costs, resolve

__all__ = ["survey"]


def survey(question: SurveyQuestion) -> SurveyAnswer:
    """Describe a model and plan its variants; what speaks against the plan stands in it. Raises what the intake refuses.

    No weight is fetched for it. Those of a local folder are looked at, for values that are no numbers or too large.
    """
    source, settings, work = question.source, question.settings, question.work
    facts = facts_of(source, settings, work)
    wanted = parse_wanted(settings.variants)
    weighed = weighed_by_gradients([one.variant for one in wanted], settings.model_dump(mode="json"))
    facts = examine(facts, gradients=bool(weighed))
    description = describe(facts)
    PROCESS["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a plan asks the driver for a GPU and starts no CUDA
    device = device_elsewhere(settings) if question.elsewhere else settle_device(settings.device)
    described = description.of(source)
    large = {} if source.repo else check_finite(facts.folder, facts)  # a folder's weights are here already

    def costs(variants: Sequence[Variant]) -> Costs:
        found = costs_of(variants, described, facts, work / "plan", settings)
        makeable = [variant for variant in variants if isinstance(found[variant.name], Cost)]
        lost = overflows_of(makeable, described, facts, work / "large", settings, large)
        return found | {name: Unsupported(why) for name, why in lost.items()}

    chosen = resolve(wanted, costs, described)
    found = plan(
        source,
        facts,
        chosen.variants,
        with_text(settings, question.text_bytes, facts.context_length),
        machine(work, question.out, settings.device if device.startswith("cuda") else device),
        chosen.costs,
        device=device,
        elsewhere=question.elsewhere,
        notes=(*chosen.notes, *large_notes(large)),
    )
    return SurveyAnswer(description=description, plan=found)


def machine(work: Path, out: Path, device: str) -> Machine:
    """This machine; what a killed run has left counts as free disk, for it is gone on with or makes room."""
    kept = [folder for sweep in work.glob("sweep-*") for folder in (sweep, *sweep.glob(FOLDER))]
    there = [path for folder in kept for path in put_in_place(folder / "files", out)]
    found = measure_machine(work, device, ours=work)
    return replace(found, disk_free=found.disk_free + sum(path.stat().st_blocks * 512 for path in there))
