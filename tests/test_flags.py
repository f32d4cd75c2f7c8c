"""What messages and pages tell people to type is something that the command line takes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from hubbot.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
MODULES = sorted((ROOT / "hubbot").rglob("*.py"))
FLAG = re.compile(r"(?<![\w-])(?<!var\()--[a-z][a-z-]*[a-z](?![\w:-])")

# options of docker, nvidia-ctk, hf, llama.cpp, pip, cmake, gh, vLLM, SGLang and of scripts in bench/
OTHERS = frozenset(
    "--gpus --runtime --set-as-default --local-dir --env --require-hashes --no-deps --output --model --jobs "
    "--storm --mode --experiments --build --dest --disable-pip-version-check --force-reinstall --hash --no-binary "
    "--requirement --parallel --only-binary --target --context-length --dtype --load-format --max-model-len --model-path --quantization "
    "--embeddings --tokenizer --mmproj --exclude-libs --fmad --gpu-architecture --no-cache --restrict --std".split()
)


def options(command: Any = None, name: str = "") -> dict[str, set[str]]:
    """`run`, `webhook create`, … -> its flags."""
    command = command or get_command(app)
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    found = {name: flags | {"--help"}}
    for sub, inner in getattr(command, "commands", {}).items():
        found |= options(inner, f"{name} {sub}".strip())
    return found


def messages(module: Path) -> Iterator[str]:
    """Every literal text of a module but its docstrings."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.value


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Every `hubbot COMMAND …` of a text with the flags that follow it in the same line or span of code."""
    known = sorted(options(), key=len, reverse=True)
    for rest in re.findall(r"\bhubbot ((?:[a-z]+)\b[^`\n|#]*)", text):
        name = next((name for name in known if name and re.match(rf"{name}\b", rest)), None)
        if name:
            yield name, FLAG.findall(rest.split(" -- ")[0])


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT / "hubbot")))
def test_every_flag_that_a_message_names_exists(module: Path) -> None:
    known = set().union(*options().values()) | OTHERS
    assert [flag for text in messages(module) for flag in FLAG.findall(text) if flag not in known] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = set().union(*options().values()) | OTHERS
    assert [flag for flag in re.findall(r"`(--[a-z][a-z-]*)", text) if flag not in known] == []
    wrong = [(name, flag) for name, flags in commands(text) for flag in flags if flag not in options()[name]]
    assert wrong == []


@pytest.mark.parametrize("advised", ["--samples", "--length", "--evaluation", "--context", "--stride", "--no-imatrix"])
def test_what_a_refused_plan_advises_can_be_tried_with_the_plan(advised: str) -> None:
    assert advised in options()["plan"]


@pytest.mark.parametrize("consent", ["--allow-unlicensed", "--allow-pickle"])
def test_what_a_run_and_its_plan_may_be_allowed_is_a_flag_of_both(consent: str) -> None:
    assert consent in options()["run"] & options()["plan"]
