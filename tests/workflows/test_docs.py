"""Every block of the pages about GitHub and containers is what it says: parsed, linted, checked against the program."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from dataclasses import dataclass
from typing import Any

import pytest
import typer
import yaml

from hubbot.action.inputs import read_inputs
from hubbot.bot.request.issue import APPROVED, LABEL
from hubbot.bot.request.parse import Approve, read_command
from hubbot.errors import BadSettings
from hubbot.machine.place import REMEDIES, Place, place
from hubbot.settings import load_settings
from tests.workflows.test_workflows import ROOT, WORKFLOWS, ask, contexts, needs_node, one

PAGES = ("README.md", "docs/quickstart.md", "docs/github.md", "docs/container.md")
KNOWN = {
    "make",
    "source",
    "docker",
    "gh",
    "hubbot",
    "sudo",
    "./config.sh",
    "crontab",
    "hf",
    "python",
    "buildah",
    "pip",
}
ALL_WORKFLOWS = "".join(path.read_text() for path in WORKFLOWS)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    pages = {page: (ROOT / page).read_text() for page in PAGES}
    return [
        Block(page, text[: match.start()].count("\n") + 1, match[1], match[2])
        for page, text in pages.items()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def of(language: str) -> list[Block]:
    return [block for block in blocks() if block.language == language]


def commands(block: Block) -> list[list[str]]:
    """The block's commands as words: continued lines joined, here-documents and comments left out."""
    text = re.sub(r"<<'(\w+)'\n.*?^\1$", "", block.text.replace("\\\n", " "), flags=re.MULTILINE | re.DOTALL)
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def all_commands() -> list[list[str]]:
    return [words for block in of("bash") for words in commands(block)]


def parse(words: list[str]) -> None:
    """Let the command line parse a command without carrying it out."""
    from hubbot.cli import app

    group: Any = typer.main.get_command(app)
    context = group.make_context("hubbot", [], resilient_parsing=True)
    while words:
        name, command, words = group.resolve_command(context, words)
        assert command is not None, name
        if not hasattr(command, "resolve_command"):
            command.make_context(name, list(words), parent=context)
            return
        group, context = command, command.make_context(name, [], parent=context, resilient_parsing=True)


def test_every_block_is_of_a_kind_that_is_checked_here():
    assert {block.language for block in blocks()} <= {"bash", "yaml", "toml", "text"}
    assert len(of("bash")) > 8
    assert len(of("yaml")) >= 2
    assert of("toml")


@pytest.mark.parametrize("block", of("bash"), ids=str)
def test_a_shell_takes_every_command_and_every_program_is_known(block):
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {words[0] for words in commands(block)} <= KNOWN


def test_the_command_line_takes_every_hubbot_command():
    plain = [words[1:] for words in all_commands() if words[0] == "hubbot"]
    contained = [words[words.index("hubbot") + 1 :] for words in all_commands() if words[:2] == ["docker", "run"]]
    assert len(plain) + len(contained) > 5
    for words in (*plain, *contained):
        parse(words)


def test_a_command_with_a_wrong_option_would_be_noticed():
    with pytest.raises(Exception, match="No such option"):
        parse(["plan", "org/name", "--varaints", "Q8_0"])


def test_every_variable_and_secret_that_is_set_is_one_that_a_workflow_reads():
    told = [words for words in all_commands() if words[:1] == ["gh"]]
    assert told
    for words in told:
        match words[1:4]:
            case ["variable", "set", name]:
                assert f"vars.{name}" in ALL_WORKFLOWS
            case ["secret", "set", name]:
                assert f"secrets.{name}" in ALL_WORKFLOWS
            case ["workflow", "run", name]:
                assert (ROOT / ".github" / "workflows" / name).exists()
            case ["label", "create", name]:
                assert name in (LABEL, APPROVED)
            case ["issue", "comment", _]:
                assert read_command(words[words.index("--body") + 1]) == Approve()
            case ["api", *_] | ["run", "watch"]:
                pass
            case other:
                pytest.fail(f"gh {other} is not known here")
    table = (ROOT / "docs" / "github.md").read_text()
    for name in set(re.findall(r"(?:vars|secrets)\.([A-Z_]+)", ALL_WORKFLOWS)):
        assert f"`{name}`" in table, f"docs/github.md does not explain {name}"


@needs_node
def test_the_values_that_the_pages_give_to_variables_work():
    values: dict[str, set[str]] = {}
    for words in all_commands():
        if words[:3] == ["gh", "variable", "set"]:
            values.setdefault(words[3], set()).add(words[words.index("--body") + 1])
    for runner in values["HUBBOT_RUNNER"]:
        assert isinstance(json.loads(runner), list)
    for options in values["HUBBOT_GPU"]:
        job = one("quantize.yml", contexts({}, inputs={"model": "a/b"}, vars={"HUBBOT_GPU": options}))["jobs"][
            "quantize"
        ]
        assert options in job["container"]["options"]


def test_json_that_is_sent_is_json():
    sent = [
        text
        for block in of("bash")
        for text in re.findall(r"<<'JSON'\n(.*?)^JSON$", block.text, re.MULTILINE | re.DOTALL)
    ]
    assert [json.loads(text) for text in sent]


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_every_toml_block_is_a_hubbot_toml(block, tmp_path):
    (tmp_path / "hubbot.toml").write_text(block.text)
    load_settings(tmp_path / "hubbot.toml", {})
    (tmp_path / "hubbot.toml").write_text("nonsense = 1\n" + block.text)
    with pytest.raises(BadSettings, match="nonsense"):
        load_settings(tmp_path / "hubbot.toml", {})


@needs_node
@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_github_and_actionlint_take_every_workflow(block):
    rest = (
        "" if re.search("^on:", block.text, re.MULTILINE) else "on: workflow_dispatch\n"
    )  # the README shows the job alone
    files = {"workflow.yml": rest + block.text}
    assert ask({"do": "parse", "files": files})["problems"] == []
    problems = ask({"do": "lint", "files": files})["problems"]
    assert [told for told in problems if 'label "gpu" is unknown' not in told] == []  # a label of one's own


def test_what_the_workflows_hand_over_is_declared(tmp_path):
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    reusable = yaml.safe_load((ROOT / ".github/workflows/quantize.yml").read_text())[True]["workflow_call"]
    seen = set()
    for block in of("yaml"):
        for job in yaml.safe_load(block.text)["jobs"].values():
            if str(job.get("uses", "")).startswith("hubbot/hubbot/.github/workflows/quantize.yml@"):
                seen.add("workflow")
                assert job["with"].keys() <= reusable["inputs"].keys()
                assert job["secrets"].keys() <= reusable["secrets"].keys()
            for step in job.get("steps", ()):
                if str(step.get("uses", "")).startswith("hubbot/hubbot@"):
                    seen.add("action")
                    assert step["with"].keys() <= action["inputs"].keys()
                    given = {f"INPUT_{name.upper()}": str(value) for name, value in step["with"].items()}
                    read_inputs(given | {"INPUT_TOKEN": "hf_x"}, tmp_path)
    assert seen == {"workflow", "action"}


def test_a_caller_grants_what_the_jobs_of_the_reusable_workflow_ask_for():
    """GitHub refuses to start a workflow whose called jobs ask for more than their caller has."""
    callee = yaml.safe_load((ROOT / ".github/workflows/quantize.yml").read_text())["jobs"].values()
    asked = {(name, level) for job in callee for name, level in job["permissions"].items()}
    texts = [block.text for block in of("yaml")] + [path.read_text() for path in WORKFLOWS]
    callers = [
        (workflow.get("permissions") or {}) if "permissions" not in job else job["permissions"]
        for workflow in map(yaml.safe_load, texts)
        for job in workflow["jobs"].values()
        if "/workflows/quantize.yml" in str(job.get("uses", ""))
    ]
    assert len(callers) >= 3  # README, quickstart, watch.yml
    for granted in callers:
        assert asked <= set(granted.items())


def test_links_between_the_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", (ROOT / page).read_text()):
            if not target.startswith("http") and target != "settings.md":
                assert ((ROOT / page).parent / target).resolve().exists(), f"{page}: {target}"


def test_the_remedies_on_the_page_are_those_that_doctor_gives():
    text = (ROOT / "docs" / "github.md").read_text()
    table = text[text.index("<!-- remedies") : text.index("<!-- /remedies")]
    rows = dict(re.findall(r"^\| (.*?) \| (.*) \|$", table, re.MULTILINE))
    assert {str(where): told for where, told in REMEDIES.items()} == {key: rows[key] for key in map(str, REMEDIES)}


@pytest.mark.parametrize(
    ("environ", "marked", "where"),
    [
        ({"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": "/github/workspace"}, True, Place.ACTION),
        ({"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": "/__w/r/r"}, False, Place.JOB_CONTAINER),
        ({"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": "/home/runner/work/r/r"}, False, Place.MACHINE),
        ({}, True, Place.CONTAINER),
        ({}, False, Place.MACHINE),
    ],
)
def test_the_place_is_told_apart(environ, marked, where, tmp_path):
    mark = tmp_path / "mark"
    if marked:
        mark.touch()
    assert place(environ, (mark,)) is where
    assert place({"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": "/github/workspace"}) is Place.ACTION
