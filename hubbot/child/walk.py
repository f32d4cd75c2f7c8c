"""A sweep over the parts of a model, told part by part; what making and evaluating share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from hubbot import log
from hubbot.formats.protocol import Format
from hubbot.model import ModelFacts, part_layout
from hubbot.sweep.group import ALONE, Group
from hubbot.sweep.references import References
from hubbot.sweep.walk import SweepInput, SweepResult, sweep
from hubbot.sweep.windows import Windows

__all__ = ["walk"]


def walk(
    facts: ModelFacts,
    formats: Sequence[Format],
    *,
    device: str,
    work: Path,
    calibration: Windows | None,
    evaluation: Windows | None,
    references: References | None = None,
    conversations: Windows | None = None,
    what: str | None = None,
    group: Group = ALONE,
) -> SweepResult:
    """what: the variants in words, where their names would say nothing."""
    task = SweepInput(
        folder=facts.folder,
        tensors=facts.tensors,
        parts=part_layout(facts),
        calibration=calibration,
        evaluation=evaluation,
        work=work,
        device=torch.device(device),
        references=references,
        conversations=conversations,
        group=group,
    )
    if group.rank:
        return sweep(task, formats)  # the first process tells how far it is
    names = what or ", ".join(variant.name for family in formats for variant in family.variants)
    with log.progress(f"sweep of {names}", len(task.parts), "parts") as advance:
        done = 0

        def report(_: str, number: int, __: int) -> None:
            nonlocal done
            advance(number - done)
            done = number

        return sweep(task, formats, report)
