"""What tests of the whole job share: small texts, settings that take seconds, stages without their confinement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hubbot.cli import main
from hubbot.confine import isolate
from hubbot.confine.isolate import Answer, Call
from hubbot.confine.stage import Stage, decode, encode, perform
from hubbot.confine.walls import Walls
from hubbot.domain import Record
from hubbot.hub.client import Hub as Seen
from hubbot.job import pipeline
from hubbot.job.pipeline import Run
from hubbot.settings import Settings, load_settings
from tests.hub import Hub
from tests.models import texts


def unconfined(stage: Stage[Any, Any], question: Any, **_: Any) -> Answer[Any]:
    """Ask a stage in this process, where torch is loaded already: encoded as for a confined one, which has tests of its own."""
    answer = perform(stage.target, encode(stage.question, question))
    return Answer(value=decode(stage.answer, answer), walls=Walls(files="none", network="none", rights="none"))


def command(*words: str, call: Call = isolate.call) -> int:
    """What the command line ends with."""
    with pytest.raises(SystemExit) as stop:
        main(list(words), call=call)
    return int(str(stop.value.code or 0))


def write_texts(folder: Path) -> tuple[Path, Path]:
    """Calibration and evaluation text that share nothing."""
    pieces = texts(80)
    for name, part in (("calibration", pieces[:40]), ("evaluation", pieces[40:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": piece}) + "\n" for piece in part))
    return folder / "calibration.jsonl", folder / "evaluation.jsonl"


def flags(tmp_path: Path, **changes: object) -> dict[str, object]:
    calibration, evaluation = write_texts(tmp_path)
    return {
        "out": tmp_path / "out",
        "calibration.dataset": str(calibration),
        "calibration.samples": 8,
        "calibration.length": 64,
        "evaluation.dataset": str(evaluation),
        "evaluation.context": 64,
        "evaluation.windows": 6,
        "check.card": False,  # seconds of imports a run; tests/child/test_trials.py has it
        **{name.replace("__", "."): value for name, value in changes.items()},
    }


def settings_of(tmp_path: Path, **changes: object) -> Settings:
    return load_settings(None, flags(tmp_path, **changes))


def make(
    model: Path | str, tmp_path: Path, *, hub: Hub | None = None, token: str | None = None, **changes: object
) -> Record:
    settings = settings_of(tmp_path, **changes)
    job = Run(model=str(model), settings=settings, hub=hub.seen(token) if hub else Seen())
    return pipeline.run(job, unconfined).record


def options(tmp_path: Path, **changes: str | None) -> list[str]:
    """The same settings as `flags`, without samples, as options of the command line; None leaves one out."""
    calibration, evaluation = write_texts(tmp_path)
    config = tmp_path / "hubbot.toml"
    if not config.exists():
        config.write_text("[evaluation]\nwindows = 6\nsamples = false\n[check]\ncard = false\n")
    given: Mapping[str, str | None] = {
        "calibration": str(calibration),
        "samples": "8",
        "length": "64",
        "evaluation": str(evaluation),
        "context": "64",
        "config": str(config),
        **changes,
    }
    return [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
