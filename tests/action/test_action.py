"""A step from its environment to its exit code, with the work itself replaced by what it would leave."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from hubbot.action.outcome import Outcome, SomeRefused
from hubbot.action.step import act, outputs
from hubbot.domain import Status
from hubbot.errors import BudgetExceeded, HubFailed
from tests import records
from tests.action.runner import read_log, read_outputs

ACTION = yaml.safe_load((Path(__file__).parents[2] / "action.yml").read_text())
TOKEN = "hf_" + "s3cr3t" * 5


@pytest.fixture
def step(tmp_path, monkeypatch):
    """The environment of a docker action's step."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    return {
        "GITHUB_ACTIONS": "true",
        "GITHUB_WORKSPACE": str(workspace),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "INPUT_MODEL": "org/name",
        "INPUT_TOKEN": TOKEN,
        "INPUT_DRY-RUN": "false",
    }


@pytest.fixture
def left(tmp_path):
    """What a run leaves: two variants that passed, one refused, with a reason that tries to be a command."""
    record = records.record()
    one, two, three = record.variants[:3]
    refused = replace(three, status=Status.REFUSED, reason="ratio 1.9 over 1.1\n::set-output name=refused::[]")
    passed = tuple(replace(variant, status=Status.PASSED) for variant in (one, two))
    return Outcome(
        record=replace(record, variants=(*passed, refused)),
        record_path=tmp_path / "workspace" / "out" / "hubbot.json",
        published=("https://huggingface.co/me/name-GGUF",),
        pull_requests=("https://huggingface.co/me/name-GGUF/discussions/1",),
        summary="### Results\n\n::error::not a command in a file\n",
    )


def test_outputs_are_those_that_action_yml_declares(left):
    assert outputs(left, Path()).keys() == ACTION["outputs"].keys()
    assert outputs(Outcome(), Path()).keys() == ACTION["outputs"].keys()


def test_the_record_is_named_as_the_next_step_sees_it(left, tmp_path):
    """The container's workspace has another path outside, so below it the path is told from there."""
    assert outputs(left, tmp_path / "workspace")["record"] == "out/hubbot.json"
    assert outputs(left, tmp_path / "elsewhere")["record"] == str(tmp_path / "workspace/out/hubbot.json")
    assert outputs(Outcome(), tmp_path)["record"] == ""


def test_a_run_leaves_outputs_a_summary_and_no_error(step, left, capfd):
    passed = replace(left, record=replace(left.record, variants=left.record.variants[:2]))
    assert act(step, lambda _: passed) == 0
    written = read_outputs(Path(step["GITHUB_OUTPUT"]))
    assert json.loads(written["published"]) == ["https://huggingface.co/me/name-GGUF"]
    assert json.loads(written["pull-requests"]) == ["https://huggingface.co/me/name-GGUF/discussions/1"]
    assert json.loads(written["passed"]) == [variant.name for variant in passed.record.variants]
    assert json.loads(written["refused"]) == []
    assert written["record"] == "out/hubbot.json"
    assert written["summary"] == "2 passed, 0 refused, 1 published"
    assert Path(step["GITHUB_STEP_SUMMARY"]).read_text().startswith("### Results")
    assert read_log(capfd.readouterr().err).commands == []


def test_a_refused_variant_fails_the_step_with_its_reason_and_keeps_the_outputs(step, left, capfd):
    def work(_):
        raise SomeRefused("1 of 3 variants was refused.", left)

    assert act(step, work) == 7
    seen = read_log(capfd.readouterr().err)
    [(properties, reason)] = seen.named("error")
    assert properties["title"].endswith("refused")
    assert reason.startswith("ratio 1.9")
    assert json.loads(read_outputs(Path(step["GITHUB_OUTPUT"]))["refused"]) == [left.record.variants[2].name]


def test_a_refused_variant_is_a_warning_where_the_user_says_so(step, left, capfd):
    def work(_):
        raise SomeRefused("1 of 3 variants was refused.", left)

    assert act(step | {"INPUT_FAIL-ON-REFUSED": "false"}, work) == 0
    seen = read_log(capfd.readouterr().err)
    assert len(seen.named("warning")) == 1
    assert seen.named("error") == []


@pytest.mark.parametrize(("error", "code"), [(BudgetExceeded("needs 3 TB"), 5), (HubFailed("503"), 8)])
def test_an_error_becomes_an_annotation_and_its_exit_code(step, error, code, capfd):
    def work(_):
        raise error

    assert act(step, work) == code
    assert [data for _, data in read_log(capfd.readouterr().err).named("error")] == [str(error)]
    assert str(error) in Path(step["GITHUB_STEP_SUMMARY"]).read_text()
    assert read_outputs(Path(step["GITHUB_OUTPUT"]))["passed"] == "[]"


def test_what_nobody_expected_still_leaves_an_annotation_outputs_and_a_summary(step, capfd):
    def work(_):
        raise OSError(28, f"No space left on device for {TOKEN}")

    assert act(step, work) == 1
    log = capfd.readouterr().err
    [(_, message)] = read_log(log).named("error")
    assert "OSError: [Errno 28] No space left" in message
    assert "Traceback (most recent call last)" in log
    assert read_outputs(Path(step["GITHUB_OUTPUT"])).keys() == ACTION["outputs"].keys()
    summary = Path(step["GITHUB_STEP_SUMMARY"]).read_text()
    assert "No space left" in summary
    assert TOKEN not in message + summary + log.replace(f"::add-mask::{TOKEN}", "")


def test_a_wrong_input_is_an_annotation_with_its_name_and_nothing_is_done(step, capfd):
    def work(_):
        raise AssertionError("must not be called")

    assert act(step | {"INPUT_PUBLISH": "prr"}, work) == 2
    [(properties, message)] = read_log(capfd.readouterr().err).named("error")
    assert properties == {"title": "Input publish"}
    assert "Nearest: pr" in message


def test_the_token_is_masked_before_anything_else_and_written_nowhere(step, capfd):
    def work(inputs):
        assert inputs.token == TOKEN
        raise HubFailed(f"the Hub said no to {inputs.token}")

    act(step, work)
    log = capfd.readouterr().err
    assert read_log(log).masks == [TOKEN]
    assert log.index("add-mask") < log.index("stop-commands")
    assert log.count(TOKEN) == 1  # the mask command itself, which the runner does not show
    for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
        assert TOKEN not in Path(step[name]).read_text()


def test_secrets_leave_the_environment_before_the_work_begins(step):
    step |= {"HF_TOKEN": TOKEN, "GITHUB_TOKEN": "ghs_x", "ACTIONS_RUNTIME_TOKEN": "t"}

    def work(inputs):
        assert inputs.token == TOKEN
        assert TOKEN not in step.values()
        assert not {"GITHUB_TOKEN", "ACTIONS_RUNTIME_TOKEN"} & step.keys()
        return Outcome()

    assert act(step, work) == 0


def test_an_error_with_a_fence_in_it_stays_in_its_block_of_the_summary(step):
    def work(_):
        raise HubFailed("```\n# owned\n````")

    act(step, work)
    text = Path(step["GITHUB_STEP_SUMMARY"]).read_text()
    fence = next(line for line in text.splitlines() if line.startswith("`")).removesuffix("text")
    assert text.count(fence) == 2
    assert len(fence) > 4


def test_a_plan_gives_a_matrix_and_no_counts(step):
    matrix = {"include": [{"model": "org/name", "variants": "Q8_0"}]}
    act(step, lambda _: Outcome(matrix=matrix, summary="plan"))
    written = read_outputs(Path(step["GITHUB_OUTPUT"]))
    assert json.loads(written["matrix"]) == matrix
    assert written["summary"] == written["record"] == ""


def test_a_runner_that_names_no_files_gets_none(step, tmp_path):
    bare = {name: value for name, value in step.items() if not name.startswith("GITHUB_")}
    assert act(bare, lambda _: Outcome(summary="text")) == 0
    assert not (tmp_path / "output").exists()
