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
from hubbot.sweep.telling import silently
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
    resumable: bool = True,
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
        resumable=resumable,
    )
    telling = silently if group.rank else log.progress  # the first process tells how far it is
    return sweep(task, formats, telling, what=what)
