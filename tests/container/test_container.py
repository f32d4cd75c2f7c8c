"""The image, built and run: its tools, whose files it writes, what it leaves out, and a whole publish as an action.

The stages of Python and of hubbot are built as the Dockerfile says. llama.cpp is this machine's own build, unless
HUBBOT_CONTAINER_FULL=1 asks for the Dockerfile's, with every variant of the CPU's instructions: that takes an hour
where two cores have to do it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.container import engine
from tests.workflows.test_run_through import MODEL, Runner, plan_under_attack, prepare, run_through, shown
from tests.workflows.test_workflows import ATTACKS, needs_node

pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    pytest.mark.skipif(engine.missing() is not None, reason=str(engine.missing())),
]


@pytest.fixture(scope="module", autouse=True)
def image() -> str:
    engine.build(own_llama=not os.environ.get("HUBBOT_CONTAINER_FULL"))
    return engine.IMAGE


def test_doctor_finds_every_tool_in_the_image():
    done = engine.run_container("hubbot", "doctor")
    assert done.returncode == 0, done.stdout
    assert "fail" not in done.stdout.split()


def test_an_argument_more_or_less_makes_no_difference_to_the_command():
    assert engine.run_container("hubbot", "--version").stdout == engine.run_container("--version").stdout


def test_files_belong_to_who_owns_the_mounted_folder(tmp_path):
    """Not to root: the entry point becomes the folder's owner, and the exit code is the command's."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "hubbot.toml").write_text("")
    for folder in (tmp_path, work):
        folder.chmod(0o755)
    os.chown(work, 4321, 4321)
    done = engine.run_container("hubbot", "watch", "--state", "/work/state", options=("-v", f"{work}:/work"))
    made = [path for path in work.iterdir() if path.name.startswith("state")]
    assert made, done.stderr
    assert {path.stat().st_uid for path in made} == {4321}


def test_nothing_is_left_inside_that_only_building_or_this_machine_needs():
    script = "ls -A /root /var/lib/apt/lists /tmp; find / -xdev -name '*.pip' -o -xdev -name 'pip-*cache*'; env; which cmake ninja uv pytest"
    done = engine.run_container("-c", script, options=("--entrypoint", "sh"))
    shown_lines = done.stdout
    assert "TOKEN" not in shown_lines
    assert "cache" not in shown_lines.lower()
    assert not [line for line in shown_lines.splitlines() if line.startswith("/opt/hubbot/.venv/bin/")]


def test_the_image_says_what_it_is():
    told = json.loads(engine.call("podman", "image", "inspect", engine.IMAGE, capture_output=True).stdout)[0]
    labels = told["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert {"title", "description", "source", "version", "revision"} <= {name.rpartition(".")[2] for name in labels}
    assert told["Config"]["Entrypoint"] == ["hubbot-action"]
    assert not told["Config"].get("User")


def as_an_action(environ: dict[str, str], workspace: Path, files: Path) -> subprocess.CompletedProcess[str]:
    """Start the container as a runner starts a docker action: fixed folders, fixed variables, no arguments."""
    named = {"GITHUB_WORKSPACE": "/github/workspace", "GITHUB_OUTPUT": "/github/files/output", "GITHUB_STEP_SUMMARY": "/github/files/summary"}  # fmt: skip
    home = files.parent / "home"
    home.mkdir(exist_ok=True)
    os.chown(home, workspace.stat().st_uid, workspace.stat().st_gid)
    pairs = {**environ, **named, "HOME": "/github/home"}.items()
    options = [part for name, value in pairs for part in ("-e", f"{name}={value}")]
    mounts = {workspace: "workspace", files: "files", home: "home"}
    options += [part for place, name in mounts.items() for part in ("-v", f"{place}:/github/{name}")]
    return engine.run_container(options=(*options, "--workdir", "/github/workspace"), timeout=1800)


@needs_node
@pytest.mark.parametrize("owner", [0, 1001], ids=["a runner that is root", "a runner with a user of its own"])
def test_a_dispatch_runs_through_the_container_to_its_pull_requests(hub, tiny_model, tmp_path, owner):
    read, write = hub.user("reader", scope="read"), hub.user("me", scope="write")
    hub.user("org")
    hub.model(MODEL, tiny_model("llama"))
    prepare(tmp_path / "workspace")
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, owner, owner)
    tmp_path.chmod(0o755)
    runner = Runner(tmp_path / "workspace", tmp_path / "files", hub.endpoint, as_an_action)
    shown(hub, run_through(runner, read, write))
    assert {path.stat().st_uid for path in (tmp_path / "workspace").rglob("*")} == {owner}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_input_makes_no_file(hub, tiny_model, tmp_path, attack):
    hub.user("org")
    hub.model(MODEL, tiny_model("llama"))
    prepare(tmp_path / "workspace")
    plan_under_attack(Runner(tmp_path / "workspace", tmp_path / "files", hub.endpoint, as_an_action), attack)


def test_git_is_there_so_that_a_checkout_can_leave_what_lies_in_the_workspace():
    done = engine.run_container("--version", options=("--entrypoint", "git"))
    assert done.stdout.startswith("git version"), done.stderr


def test_the_demo_runs_in_the_container(tmp_path):
    tmp_path.chmod(0o755)
    os.chown(tmp_path, 1001, 1001)
    options = ("-v", f"{tmp_path}:/work")
    done = engine.run_container(
        "hubbot", "demo", "--variants", "Q4_K_M,gptq-4bit-128g,bnb-nf4", options=options, timeout=3600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "out" / "hubbot.json").read_text())
    assert [variant["status"] for variant in record["variants"]] == ["passed"] * 3
