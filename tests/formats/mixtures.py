"""One sweep of a mixture of experts in one or both containers of GPTQ's codes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hubbot.domain import Gptq, Packed
from hubbot.formats.gptq.format import Container, GptqFormat
from hubbot.formats.names import parse_variant
from hubbot.model import read_facts
from hubbot.settings import load_settings
from hubbot.sweep.references import References
from hubbot.sweep.walk import SweepResult
from tests.quantized import source_of
from tests.sweeps import run_sweep, windows

__all__ = ["swept"]


def swept(folder: Path, work: Path, variants: Mapping[str, Container]) -> tuple[SweepResult, Mapping[str, Path]]:
    """What came of it, and variant -> the file of what its decoded weights compute."""
    facts, settings = read_facts(folder), load_settings(None, {})
    formats = [
        GptqFormat(
            variants=[one for one in [parse_variant(name)] if isinstance(one, Gptq | Packed)],
            source=source_of(folder),
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
    texts = {"calibration": windows(1, 12), "evaluation": evaluation}
    result = run_sweep(folder, work, formats, references=references, **texts)
    return result, references.save(work / "references")
