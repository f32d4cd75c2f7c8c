"""What tests of the whole job share: small texts, settings that take seconds, stages without their confinement."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hubbot.cli import main
from hubbot.confine import isolate
from hubbot.domain import Record
from hubbot.job import pipeline
from hubbot.job.pipeline import Run
from hubbot.settings import Settings, load_settings
from tests.hub import Hub
from tests.models import texts


def unconfined(target: str, argument: Any, **_: Any) -> isolate.Answer:
    module, name = target.split(":")
    function = getattr(__import__(module, fromlist=[name]), name)
    value = json.loads(json.dumps(function(json.loads(json.dumps(argument, default=str))), default=str))
    return isolate.Answer(value=value, walls=None)  # type: ignore[arg-type]


@contextmanager
def without_walls() -> Iterator[None]:
    """Confined stages run in this process: the confinement has tests of its own, and torch is loaded already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolate, "call", unconfined)
        yield


@pytest.fixture
def in_process() -> Iterator[None]:
    with without_walls():
        yield


def command(*words: str) -> int:
    """What the command line ends with."""
    with pytest.raises(SystemExit) as stop:
        main(list(words))
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
        **{name.replace("__", "."): value for name, value in changes.items()},
    }


def settings_of(tmp_path: Path, **changes: object) -> Settings:
    return load_settings(None, flags(tmp_path, **changes))


def make(
    model: Path | str, tmp_path: Path, *, hub: Hub | None = None, token: str | None = None, **changes: object
) -> Record:
    settings = settings_of(tmp_path, **changes)
    return pipeline.run(Run(model=str(model), settings=settings, token=token, endpoint=hub.endpoint if hub else None))


def options(tmp_path: Path, **changes: str | None) -> list[str]:
    """The same settings as `flags`, without samples, as options of the command line; None leaves one out."""
    calibration, evaluation = write_texts(tmp_path)
    config = tmp_path / "hubbot.toml"
    if not config.exists():
        config.write_text("[evaluation]\nwindows = 6\nsamples = false\n")
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
