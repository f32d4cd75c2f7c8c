"""One sweep of a mixture of experts in one or both containers of GPTQ's codes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from hubbot.domain import Gptq, Packed
from hubbot.formats.gptq.format import Container, GptqFormat
from hubbot.formats.names import parse_variant
from hubbot.model import part_layout, read_facts
from hubbot.settings import load_settings
from hubbot.sweep.references import References
from hubbot.sweep.walk import SweepInput, sweep
from tests.formats.gptq.test_experts import source, windows


def swept(folder: Path, work: Path, variants: Mapping[str, Container]) -> tuple[dict[str, Path], Mapping[str, Path]]:
    """Variant -> its folder, and -> the file of what its decoded weights compute."""
    facts, settings = read_facts(folder), load_settings(None, {})
    formats = [
        GptqFormat(
            variants=[one for one in [parse_variant(name)] if isinstance(one, Gptq | Packed)],
            source=source(folder),
            facts=facts,
            work=work / "parts",
            out=work / "out",
            settings=settings.gptq,
            container=container,
        )
        for name, container in variants.items()
    ]
    evaluation = windows(2, 3)
    references = References(evaluation)
    task = SweepInput(
        folder=folder,
        tensors=facts.tensors,
        parts=part_layout(facts),
        calibration=windows(1, 12),
        evaluation=evaluation,
        work=work,
        device=torch.device("cpu"),
        references=references,
    )
    result = sweep(task, formats)
    made = {name: files.paths[0].parent for name, files in result.files.items()}
    return made, references.save(work / "references")
