"""quantize.yml from dispatch to pull request: GitHub's parsers give each step its environment, hubbot does the rest.

The Hub is the server of tests/hub; what a runner does between the jobs (outputs, matrix, artifacts) is done here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.action.runner import read_log, read_outputs
from tests.models import texts
from tests.tiers import suite
from tests.workflows.test_workflows import ATTACKS, environment, needs_node, one, told_by

MODEL = "org/tiny-llama"
SETTINGS = """
variants = "Q8_0,Q4_K_M,bnb-nf4"
[publish]
namespace = "me"
[calibration]
dataset = "calibration.txt"
samples = 8
length = 64
[evaluation]
dataset = "evaluation.txt"
context = 64
windows = 8
samples = false
[gate]
max_ratio = {"4" = 100, "8" = 100}
max_kld = {"4" = 50, "8" = 50}
"""

Execute = Callable[[dict[str, str], Path, Path], "subprocess.CompletedProcess[str]"]


@dataclass
class Step:
    """What a step left behind."""

    code: int
    log: str
    outputs: dict[str, str]
    summary: str


@dataclass
class Runner:
    """A runner as far as hubbot sees it: a workspace, files for outputs and summary, an environment for each step."""

    workspace: Path
    files: Path
    endpoint: str
    execute: Execute
    steps: list[Step] = field(default_factory=list)

    def step(self, given: dict[str, str]) -> Step:
        shutil.rmtree(self.files, ignore_errors=True)
        self.files.mkdir()
        for name in ("output", "summary"):
            (self.files / name).touch()
        owner = self.workspace.stat()
        for path in (self.files, *self.files.iterdir()):
            os.chown(path, owner.st_uid, owner.st_gid)
        environ = {
            "GITHUB_ACTIONS": "true",
            "CI": "true",
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            **given,
        }
        done = self.execute(environ, self.workspace, self.files)
        outputs, summary = read_outputs(self.files / "output"), (self.files / "summary").read_text()
        self.steps.append(Step(done.returncode, done.stdout + done.stderr, outputs, summary))
        return self.steps[-1]


def on_this_machine(environ: dict[str, str], workspace: Path, files: Path) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "HUBBOT_LLAMA_CPP", "PYTHONPATH")
    }
    named = {"GITHUB_WORKSPACE": str(workspace), "GITHUB_OUTPUT": str(files / "output"), "GITHUB_STEP_SUMMARY": str(files / "summary")}  # fmt: skip
    program = [sys.executable, "-c", "from hubbot.action.container import main; main()"]
    return subprocess.run(program, env=kept | environ | named, cwd=workspace, capture_output=True, text=True, timeout=900, check=False)  # fmt: skip


def prepare(workspace: Path) -> None:
    workspace.mkdir()
    (workspace / "hubbot.toml").write_text(SETTINGS)
    lines = texts(80)
    (workspace / "calibration.txt").write_text("\n\n".join(lines[:40]))
    (workspace / "evaluation.txt").write_text("\n\n".join(lines[40:]))


def in_two(matrix: dict[str, Any]) -> dict[str, Any]:
    """The plan as a smaller budget would have made it: its one job as two."""
    [entry] = matrix["include"]
    first, *others = entry["variants"].split(",")
    parts = {"1-of-2": first, "2-of-2": ",".join(others)}
    return {"include": [{**entry, "part": part, "variants": names} for part, names in parts.items()]}


def run_through(
    runner: Runner, read: str, write: str, *, event: str = "workflow_dispatch", parts: int = 1
) -> list[str]:
    """Plan, quantize, hand the artifacts over, publish twice. Returns the pull requests' addresses."""
    values = {"model": MODEL, "revision": "main", "variants": "", "publish": "pr", "namespace": ""}
    seen = told_by(event, values) | {"secrets": {"HF_READ_TOKEN": read, "HF_WRITE_TOKEN": write}}

    planned = runner.step(environment(one("quantize.yml", seen), "plan"))
    assert planned.code == 0, planned.log
    assert "Q4_K_M" in planned.summary
    matrix = json.loads(planned.outputs["matrix"])
    matrix = in_two(matrix) if parts == 2 else matrix
    release = matrix["include"][0]["release"]

    seen["needs"]["plan"]["outputs"] = {"matrix": json.dumps(matrix)}
    for entry in matrix["include"]:
        workflow = one("quantize.yml", seen | {"matrix": entry})
        made = runner.step(environment(workflow, "quantize"))
        assert made.code == 0, made.log
        assert json.loads(made.outputs["passed"])
        assert json.loads(made.outputs["published"]) == []
        folder = runner.workspace / "out" / release / entry["part"]
        assert made.outputs["record"] == f"out/{release}/{entry['part']}/hubbot.json"
        assert (folder / "report.html").exists()
        folder.rename(folder.with_name(f"release-{release}-{entry['part']}"))  # as download-artifact lays it out

    given = environment(one("quantize.yml", seen), "publish")
    published = runner.step(given)
    assert published.code == 0, published.log
    again = runner.step(given)
    assert again.code == 0, again.log
    assert json.loads(again.outputs["pull-requests"]) == json.loads(published.outputs["pull-requests"])
    for address in json.loads(published.outputs["pull-requests"]):
        assert address in published.summary
    assert "- [ ]" in published.summary
    for step in runner.steps:
        assert read_log(step.log).named("error") == []
        groups = [name for name, _, _ in read_log(step.log).commands if name in ("group", "endgroup")]
        assert groups == ["group", "endgroup"] * (len(groups) // 2)
        shown = step.log.replace(f"::add-mask::{read}", "").replace(f"::add-mask::{write}", "")
        for token in (read, write):
            assert token not in shown + step.summary + json.dumps(step.outputs)
    return json.loads(published.outputs["pull-requests"])


def shown(hub: Any, addresses: list[str]) -> None:
    """What the Hub holds: one open pull request in each repo, with the card, the record and the files."""
    assert sorted(address.split("/discussions/")[0].rsplit("/", 1)[1] for address in addresses) == [
        "tiny-llama-GGUF",
        "tiny-llama-bnb-4bit",
    ]
    from huggingface_hub import HfApi

    for address in addresses:
        repo = "/".join(address.split("/discussions/")[0].split("/")[-2:])
        api = HfApi(endpoint=hub.endpoint, token=False)
        requests = [one for one in api.get_repo_discussions(repo) if one.is_pull_request]
        assert [request.status for request in requests] == ["open"]
        files = api.list_repo_files(repo, revision=requests[0].git_reference)
        assert {"README.md", "hubbot.json"} <= set(files)


@needs_node
@pytest.mark.slow
@pytest.mark.parametrize(("event", "parts"), [("workflow_dispatch", 2), ("repository_dispatch", 1)])
def test_a_dispatch_ends_in_one_pull_request_for_each_repo(hub, tiny_model, tmp_path, event, parts):
    read, write = hub.user("reader", scope="read"), hub.user("me", scope="write")
    hub.user("org")
    hub.model(MODEL, tiny_model("llama"))
    prepare(tmp_path / "workspace")
    runner = Runner(tmp_path / "workspace", tmp_path / "files", hub.endpoint, on_this_machine)
    shown(hub, run_through(runner, read, write, event=event, parts=parts))


def plan_under_attack(runner: Runner, attack: str) -> None:
    """Plans whose inputs hold an attack: where it is no wrong value it stays the text that it is, and no file appears."""
    before = {path for path in runner.workspace.parent.rglob("*") if ".work" not in path.parts}
    plan = {"INPUT_COMMAND": "plan", "INPUT_MODEL": MODEL}
    taken = runner.step({**plan, "INPUT_QUANTIZED-BY": attack, "INPUT_OUT": "out"})
    assert taken.code == (0 if attack.isprintable() else 2), taken.log
    refused = runner.step({**plan, "INPUT_MODEL": attack})
    assert refused.code == 2, refused.log
    for step in (taken, refused):
        assert read_log(step.log).named("x") == []
        assert "owned" not in step.outputs["matrix"]
    after = {path for path in runner.workspace.parent.rglob("*") if ".work" not in path.parts}
    assert {path.name for path in after - before} <= {"out", "files", "home", "output", "summary"}
    assert not [path for path in runner.workspace.parent.rglob("*") if "owned" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("attack", suite(ATTACKS, first=2))
def test_a_hostile_input_makes_no_file(hub, tiny_model, tmp_path, attack):
    hub.user("org")
    hub.model(MODEL, tiny_model("llama"))
    prepare(tmp_path / "workspace")
    plan_under_attack(Runner(tmp_path / "workspace", tmp_path / "files", hub.endpoint, on_this_machine), attack)
