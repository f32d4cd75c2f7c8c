"""The script of watch.yml as a runner starts it, with `sh -e`, in front of a Hub: what it hands on, and what it keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.action.runner import read_outputs
from tests.bot.cheap import files_of_a_model
from tests.hub import Hub
from tests.workflows.test_workflows import EVENTS, ROOT, needs_node, one

WATCH = yaml.safe_load((ROOT / ".github" / "workflows" / "watch.yml").read_text())
[STEP] = [step for step in WATCH["jobs"]["watch"]["steps"] if step.get("id") == "watch"]
SETTINGS = 'variants = "gptq-4bit-128g"\n[publish]\nnamespace = "ours"\n[watch]\nauthors = ["maker"]\n'


class Job:
    """A workspace in which the script runs again and again; `state` stays as the cache would bring it back."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder, self.hub = folder, hub
        self.token = hub.user("bot", orgs={"ours": "write"})
        (folder / "hubbot.toml").write_text(SETTINGS)

    def run(self, **environ: str) -> tuple[int, dict[str, str], str]:
        output = self.folder / "output"
        output.unlink(missing_ok=True)
        output.touch()
        here = {name: value for name, value in os.environ.items() if name in ("HOME", "PYTHONPATH")}
        here |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "GITHUB_OUTPUT": str(output)}
        here |= {"GITHUB_ACTIONS": "true", "HF_TOKEN": self.token, "HF_ENDPOINT": self.hub.endpoint}
        done = subprocess.run(
            ["sh", "-e", "-c", STEP["run"]], cwd=self.folder, env=here | {"DRY_RUN": "", "RETRY": ""} | environ,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        return done.returncode, read_outputs(output), done.stdout + done.stderr


@pytest.fixture
def job(tmp_path: Path, hub: Hub) -> Job:
    return Job(tmp_path, hub)


def entries(outputs: dict[str, str]) -> list[dict[str, Any]]:
    assert "\n" not in outputs["matrix"]
    return json.loads(outputs["matrix"])["include"]


@pytest.mark.slow
def test_each_model_is_handed_over_once_as_one_line_of_json(job, hub):
    sha = hub.model("maker/one", files_of_a_model(1))
    code, outputs, log = job.run()
    assert code == 0, log
    assert entries(outputs) == [{"model": "maker/one", "revision": sha}]
    code, outputs, log = job.run()
    assert code == 0, log
    assert entries(outputs) == []


@pytest.mark.slow
def test_a_model_whose_run_failed_is_handed_over_again_by_its_name(job, hub):
    sha = hub.model("maker/one", files_of_a_model(1))
    job.run()
    code, outputs, log = job.run(RETRY="maker/one")
    assert code == 0, log
    assert entries(outputs) == [{"model": "maker/one", "revision": sha}]
    code, outputs, log = job.run(RETRY="--help; touch owned")
    assert (code, outputs) == (2, {}), log
    assert not (job.folder / "owned").exists()


@pytest.mark.slow
def test_a_dry_run_hands_nothing_over(job, hub):
    hub.model("maker/one", files_of_a_model(1))
    code, outputs, log = job.run(DRY_RUN="true")
    assert (code, outputs) == (0, {}), log
    assert "maker/one" in log
    assert len(entries(job.run()[1])) == 1


@needs_node
def test_the_state_is_kept_only_where_its_matrix_was_written():
    """Models that the state calls handed over, in a matrix that nobody got, would never be made."""
    seen = EVENTS["schedule"]
    for outputs, kept in (({"matrix": '{"include": []}'}, True), ({}, False)):
        steps = one("watch.yml", seen | {"steps": {"watch": {"outputs": outputs}}})["jobs"]["watch"]["steps"]
        [keep] = [step for step in steps if step.get("name") == "Keep the state for the next run"]
        assert keep["if"] is kept
    names = [step.get("name") for step in WATCH["jobs"]["watch"]["steps"]]
    assert names.index(STEP["name"]) < names.index("Keep the state for the next run")


def test_only_the_look_at_the_hub_waits_for_another_one():
    """A run that waits days for its approval must not hold up the next look, nor other models."""
    assert "concurrency" not in WATCH
    assert WATCH["jobs"]["watch"]["concurrency"] == {"group": "watch", "cancel-in-progress": False}
    assert "max-parallel" not in WATCH["jobs"]["quantize"]["strategy"]
