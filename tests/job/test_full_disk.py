"""A disk that fills up while a job runs is told as one, and the same command goes on once there is room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubbot.cli import main
from hubbot.job import pipeline
from tests.disk import fill_up, small_disk
from tests.jobs import command, options, unconfined

__all__ = ["small_disk"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "left"),
    [("_sweep", 100_000), ("_sweep", 2_500_000), ("_judged", 0)],
    ids=["gguf", "parts-and-streams", "record-and-cards"],
)
def test_a_disk_that_fills_up_ends_with_its_code_and_the_same_command_goes_on(
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    left: int,
) -> None:
    out, real = small_disk / "out", getattr(pipeline, stage)
    ballast = small_disk / "ballast"

    def filled(*arguments: Any) -> Any:
        fill_up(small_disk, but=left)
        return real(*arguments)

    monkeypatch.setattr(pipeline, stage, filled)
    asked = ["run", str(tiny_model("llama")), "--out", str(out), "--variants", "Q8_0,bnb-nf4", "--no-gate"]
    asked += options(tmp_path)
    assert command(*asked, call=unconfined) == 5
    told = capsys.readouterr().err
    assert f"The disk under {out} is full" in told
    assert "Traceback" not in told
    assert not (out / "hubbot.json").exists()
    ballast.unlink()
    monkeypatch.setattr(pipeline, stage, real)
    assert command(*asked, call=unconfined) == 0
    assert (out / "hubbot.json").exists()


def test_an_error_that_means_something_else_stays_what_it_is() -> None:
    def program(*_: Any, **__: Any) -> None:
        raise OSError("something else")

    with pytest.raises(OSError, match="something else"):
        main([], program)
