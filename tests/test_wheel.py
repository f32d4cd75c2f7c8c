"""The package as its users get it: built, installed where no checkout is, and run from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest

from hubbot import llamacpp

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(made)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(made.glob("hubbot-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin/` of a new environment that holds the wheel alone; all other packages are looked up in this one."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    packages = next(place.glob("lib/*/site-packages"))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return place / "bin"


def call(installed: Path, *arguments: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """hubbot, with a home that knows nothing of a checkout."""
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GPTQMODEL_", "PATH"))}
    return subprocess.run(
        [installed / "hubbot", *arguments],
        cwd=home,
        env={**kept, "HOME": str(home), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_metadata_names_what_each_familys_checks_need(wheel: Path):
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = HeaderParser().parsestr(archive.read(next(n for n in names if n.endswith("/METADATA"))).decode())
    assert {"gguf", "gptq", "serve", "ray"} == set(metadata.get_all("Provides-Extra"))
    needs = metadata.get_all("Requires-Dist")
    assert "diskcache; extra == 'gguf'" in needs
    assert "optimum==2.3.0; extra == 'gptq'" in needs
    assert not [line for line in needs if line.startswith("gptqmodel")]  # it declares another torch than hubbot's
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"hubbot/templates/card/head.md.j2", "hubbot/formats/gguf/search.h", "hubbot/formats/gguf/descent.c"} <= set(
        names
    )


@pytest.mark.heavy
def test_the_demo_runs_from_the_wheel_alone(installed: Path, demo_model: Path, tmp_path: Path):
    """One variant of each family, through every stage and every runtime."""
    places = {"HUBBOT_LLAMA_CPP": str(llamacpp.place()), "HUBBOT_DEMO_CACHE": str(demo_model.parents[1])}
    done = call(
        installed, "demo", "--variants", "Q4_K_M,gptq-4bit-128g,bnb-nf4", home=tmp_path / "home", **places
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = tmp_path / "home" / "out"
    record = json.loads((out / "hubbot.json").read_text())
    assert [variant["status"] for variant in record["variants"]] == ["passed"] * 3
    assert record["hubbot"]["commit"] is None
    assert (out / "report.html").is_file()
    assert len(list((out / "cards").rglob("README.md"))) == 3


def test_a_missing_llama_cpp_is_answered_with_a_command_that_the_wheel_has(
    installed: Path, tiny_model: Callable[..., Path], tmp_path: Path
):
    done = call(
        installed, "plan", str(tiny_model()), "--variants", "Q4_K_M", "--evaluation", "none", home=tmp_path / "home"
    )
    assert done.returncode == 9, done.stderr
    assert "hubbot setup" in done.stderr
    assert "make " not in done.stderr
    asked = call(installed, "setup", "--help", home=tmp_path / "home")
    assert "--cmake" in asked.stdout
