"""What lies in an output folder is published by the rules of a run, whichever way it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hubbot.action.inputs import read_inputs
from hubbot.action.work import work
from hubbot.cli import main
from hubbot.domain import Record
from hubbot.errors import HubbotError
from hubbot.record import write_record
from tests import records

UNJUDGED: dict[str, object] = {"gate": {"enabled": False}}


def unlicensed(record: Record) -> Record:
    return replace(record, source=replace(record.source, license=None))


def by_command(out: Path, *flags: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["publish", str(out), *flags])
    return int(str(stop.value.code))


@pytest.mark.parametrize(
    ("change", "flags", "code", "words"),
    [
        (lambda record: replace(record, config=UNJUDGED), ["--namespace", "ada"], 2, "nobody judged its variants"),
        (lambda record: record, [], 2, "--namespace"),
        (unlicensed, ["--namespace", "ada"], 3, "--allow-unlicensed"),
        (unlicensed, ["--namespace", "ada", "--allow-unlicensed"], 8, "HF_TOKEN"),
    ],
    ids=["no-gate", "nobody", "no-licence", "no-licence-taken-on"],
)
def test_a_record_that_may_not_be_published_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Record], Record],
    flags: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    made = change(records.record())
    records.lay_files(made, tmp_path)
    write_record(made, tmp_path)
    assert by_command(tmp_path, *flags) == code
    assert words in capsys.readouterr().err


def test_settings_without_a_gate_publish_nothing_of_an_earlier_run(tmp_path: Path) -> None:
    write_record(records.record(), tmp_path)
    (tmp_path / "hubbot.toml").write_text("[gate]\nenabled = false\n")
    assert by_command(tmp_path, "--namespace", "ada", "--config", str(tmp_path / "hubbot.toml")) == 2


def test_the_action_publishes_no_record_that_nobody_judged(tmp_path: Path) -> None:
    write_record(replace(records.record(), config=UNJUDGED), tmp_path / "out" / "1-of-1")
    given: dict[str, Any] = {"COMMAND": "publish", "MODEL": "org/name", "PUBLISH": "pr", "NAMESPACE": "ada"}
    environ = {f"INPUT_{name}": text for name, text in (given | {"OUT": str(tmp_path / "out")}).items()}
    with pytest.raises(HubbotError, match="nobody judged"):
        work(read_inputs(environ, tmp_path))
