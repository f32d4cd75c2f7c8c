"""Workflow commands, outputs and the summary, read back as a runner reads them."""

from __future__ import annotations

import secrets
import subprocess
import sys

import pytest

from hubbot import log
from hubbot.log import github
from tests.action.runner import read_log, read_outputs

HOSTILE = [
    "::error::owned",
    "  ::set-output name=published::[]",
    "::add-mask::a",
    "##[command]rm -rf /",
    "::stop-commands::x\n::x::\n::error::owned",
    "text\r\n::warning::owned",
    "::resume-00000000000000000000000000000000::\n::error::owned",
]


@pytest.fixture(autouse=True)
def _on_github(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")


def test_the_reader_in_this_test_obeys_commands_that_nothing_guards():
    for text in HOSTILE[:4]:
        assert read_log(text).commands or read_log(text).masks


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_printed_under_guard_is_never_a_command(text, capfd):
    with github.guarded():
        log.say(text)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        subprocess.run([sys.executable, "-c", "import sys; print(sys.argv[1], file=sys.stderr)", text], check=True)
        log.warning("ours")
    streams = capfd.readouterr()
    seen = read_log(streams.err)
    assert seen.commands == [("warning", {"title": "hubbot"}, "ours")]
    assert seen.masks == []


@pytest.mark.parametrize("text", HOSTILE)
def test_a_message_stays_inside_its_own_command(text, capfd):
    with github.guarded():
        log.error(text, title=f"a,b:{text}")
    [(properties, data)] = read_log(capfd.readouterr().err).named("error")
    assert data == text
    assert properties == {"title": f"a,b:{text}"}


def test_what_a_terminal_or_a_page_would_obey_is_replaced_in_annotations_and_lines(capfd, monkeypatch):
    told = "a\x1b[31mb\u202ec\x07d\u200be\x9b31mf\tg"
    github.command("error", told, title="\x1b]0;title\x07")
    log.say(told)
    shown = capfd.readouterr().err
    assert shown.count("a\ufffd[31mb\ufffdc\ufffdd\ufffde\ufffd31mf\tg") == 2
    assert "\x1b" not in shown


def test_commands_are_obeyed_again_after_the_guard(capfd):
    with github.guarded():
        log.say("::error::no")
    github.command("notice", "yes")
    assert read_log(capfd.readouterr().err).commands == [("notice", {}, "yes")]


def test_a_group_opens_and_closes_around_a_stage_that_fails(capfd):
    with pytest.raises(ValueError, match="broken"), log.stage("fetch"):
        raise ValueError("broken")
    names = [name for name, _, _ in read_log(capfd.readouterr().err).commands]
    assert names == ["group", "endgroup"]


def test_every_line_of_a_secret_is_masked(capfd):
    log.add_mask("first\n second \n\n")
    assert read_log(capfd.readouterr().err).masks == ["first", "second"]


def test_a_long_message_is_one_write_that_a_pipe_keeps_whole(capfd):
    with github.guarded():
        log.error("é" * 100_000)
    [(_, data)] = read_log(capfd.readouterr().err).named("error")
    assert 0 < len(data.encode()) < 4096


@pytest.mark.parametrize("value", ["", "plain", "a\nb\n", "x<<EOF\nEOF\n", "end-0\nname=value", "a=b", *HOSTILE])
def test_an_output_comes_back_as_it_was_given(tmp_path, value):
    file = tmp_path / "output"
    github.set_output(file, "one", value)
    github.set_output(file, "two", "second")
    assert read_outputs(file) == {"one": value, "two": "second"}


def test_a_delimiter_that_the_value_guessed_is_drawn_again(tmp_path, monkeypatch):
    drawn = iter(["guessed", "fresh"])
    monkeypatch.setattr(secrets, "token_hex", lambda _: next(drawn))
    github.set_output(tmp_path / "output", "one", "a\nend-guessed\nevil=1")
    assert read_outputs(tmp_path / "output") == {"one": "a\nend-guessed\nevil=1"}


def test_a_summary_never_passes_githubs_limit(tmp_path):
    file = tmp_path / "summary"
    file.write_text("written by an earlier step\n")
    github.append_summary(file, "| ü | row |\n" * 200_000)
    text = file.read_text()
    assert len(text.encode()) < github.SUMMARY_LIMIT
    assert text.startswith("written by")
    assert "longer than GitHub shows" in text
    github.append_summary(file, "x" * 100_000)
    assert file.stat().st_size < github.SUMMARY_LIMIT


@pytest.mark.parametrize(
    ("opening", "closing"), [("```mermaid", "```"), ("````text\n```\nstill inside", "````"), ("~~~", "~~~")]
)
def test_a_summary_that_is_cut_inside_of_a_block_of_code_ends_the_block(tmp_path, opening, closing):
    github.append_summary(tmp_path / "summary", f"```\nwhole\n```\n\n{opening}\n" + "row\n" * 400_000)
    text = (tmp_path / "summary").read_text()
    assert len(text.encode()) < github.SUMMARY_LIMIT
    block, _, note = text.rpartition(f"\n{closing}\n")
    assert block.endswith("row")
    assert "longer than GitHub shows" in note


def test_a_summary_that_is_cut_outside_of_a_block_opens_none(tmp_path):
    github.append_summary(tmp_path / "summary", "```\nwhole\n```\n" + "text ``` in a line\n" * 100_000)
    assert (tmp_path / "summary").read_text().count("\n```\n") == 1


def test_a_short_summary_is_kept_whole(tmp_path):
    github.append_summary(tmp_path / "summary", "# Title\n\ntext\n")
    assert (tmp_path / "summary").read_text() == "# Title\n\ntext\n"


def test_progress_in_a_log_says_the_end_and_little_else(capfd):
    with log.progress("sweep", 200, "blocks") as advance:
        for _ in range(200):
            advance(1)
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["sweep: 200/200 blocks"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_read_as_people_say_them(seconds, shown):
    assert log.duration(seconds) == shown
