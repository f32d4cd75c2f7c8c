"""One table names the settings outside: what flags and inputs say, take and set follows from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from hubbot.action.table import INPUTS
from hubbot.cli import app
from hubbot.formats.names import PRESETS
from hubbot.settings import load_settings
from hubbot.settings.flags import Flags, takes
from hubbot.settings.options import OPTIONS, Option, with_parts_of_datasets
from hubbot.settings.sections import format_size

FLAGS = [option for option in OPTIONS if option.flag]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.setting)
def test_an_option_means_outside_what_its_setting_means(option: Option) -> None:
    section, _, key = option.setting.rpartition(".")
    found = load_settings(None, {})
    for name in filter(None, section.split(".")):
        found = getattr(found, name)
    described = type(found).model_fields[key].description
    assert option.meaning.startswith(described)
    for each in INPUTS:
        if each.name == option.input:
            assert each.description.lower().startswith(described.lower())


@pytest.mark.parametrize("option", FLAGS, ids=lambda option: option.flag)
def test_every_flag_reaches_its_setting(option: Option) -> None:
    told: list[Mapping[str, Any]] = []
    program = typer.Typer()

    @program.command()
    @takes(option.flag, "seed" if option.flag != "seed" else "out")
    def command(flags: Flags) -> None:
        told.append(flags)

    words = {bool: [f"--no-{option.flag}" if option.default else f"--{option.flag}"], int: [f"--{option.flag}", "64"]}
    done = CliRunner().invoke(program, words.get(option.type, [f"--{option.flag}", option.example or "pr"]))
    assert done.exit_code == 0, done.output
    value: Any = load_settings(None, told[0])
    for name in option.setting.split("."):
        value = getattr(value, name)
    assert value != option.default or (option.example or "").startswith(str(value))
    assert [setting for setting, given in told[0].items() if given is None and setting == option.setting] == []


def test_the_presets_that_are_named_are_those_that_there_are() -> None:
    [variants] = [option for option in OPTIONS if option.setting == "variants"]
    assert re.split(r", ", variants.meaning.partition("presets: ")[2]) == list(PRESETS)


def test_run_takes_every_flag_and_shows_its_panel() -> None:
    shown = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output
    assert {option.flag for option in FLAGS if f"--{option.flag} " not in shown} == set()
    assert shown.count("╭─ ") == 6  # arguments, --help alone, and the four panels


@pytest.mark.parametrize(
    ("text", "dataset", "config", "split"),
    [
        ("me/texts", "me/texts", None, "train"),
        ("me/texts:de:test", "me/texts", "de", "test"),
        ("here.txt", "here.txt", None, "train"),
        ("odd:name.txt", "odd:name.txt", None, "train"),
    ],
)
def test_a_dataset_is_taken_apart_and_a_file_is_not(
    tmp_path: Path, text: str, dataset: str, config: str | None, split: str
) -> None:
    for name in ("here.txt", "odd:name.txt"):
        (tmp_path / name).touch()
    told = with_parts_of_datasets({"calibration.dataset": text, "evaluation.dataset": None}, folder=tmp_path)
    settings = load_settings(None, told)
    assert (settings.calibration.dataset, settings.calibration.config, settings.calibration.split) == (
        dataset,
        config,
        split,
    )
    assert settings.evaluation.config == "wikitext-2-raw-v1"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (807_694_464, "807.7 MB"),
        (999_960_000, "1.00 GB"),
        (2.5e15, "2500.00 TB"),
    ],
)
def test_a_size_is_told_in_the_units_of_the_hub(count: float, text: str) -> None:
    assert format_size(count) == text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("HuggingFaceH4/ultrachat_200k", "test_sft", 32)),
        ({"evaluation.windows": 8}, ("HuggingFaceH4/ultrachat_200k", "test_sft", 8)),
        ({"evaluation.dataset": "own.txt"}, None),
        ({"evaluation.dataset": "none"}, None),
        ({"conversations.dataset": "none"}, None),
        ({"conversations.dataset": "me/chats"}, ("me/chats", "test", 32)),
        ({"conversations.dataset": "me/chats::train", "evaluation.dataset": "own.txt"}, ("me/chats", "train", 32)),
    ],
)
def test_conversations_come_with_the_default_evaluation_text_or_where_they_are_named(
    given: dict[str, object], expected: tuple[str, str, int] | None
) -> None:
    spoken = load_settings(None, with_parts_of_datasets(given)).spoken
    assert (spoken and (spoken.dataset, spoken.split, spoken.windows)) == expected
