"""The files that set-up installs from agree with each other."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from hubbot import llamacpp

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def pins(lines: list[str]) -> set[str]:
    return {line for line in lines if re.match(r"[a-z].*==", line)}


def test_the_lock_is_made_from_the_pins_that_the_package_declares():
    declared = pins(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    listed = pins((ROOT / "requirements.in").read_text().splitlines())
    assert declared - listed == {f"torch=={re.search(r'TORCH := (.*)', MAKEFILE)[1]}"}
    locked = {line.split(" ")[0] for line in LOCK.splitlines() if "==" in line}
    assert listed <= locked


def test_every_locked_package_has_a_hash_and_none_names_where_to_get_it():
    entries = re.split(r"\n(?=[a-z])", LOCK.split("\n", 2)[2])
    assert len(entries) > 80
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert not re.search(r"https?://|--index|--find-links|file:", LOCK)


def test_the_lock_leaves_torchs_builds_to_pip():
    names = {re.split(r"[= ]", line)[0] for line in LOCK.splitlines() if "==" in line}
    assert not {name for name in names if name in ("torch", "triton") or name.startswith("nvidia")}


def test_llama_cpp_is_one_release_everywhere():
    pin = re.search(r"LLAMA_PIN := (.*)", MAKEFILE)[1]
    digest = re.search(r"LLAMA_SHA256 := (.*)", MAKEFILE)[1]
    assert pin == llamacpp.PIN
    assert re.search(rf"llama-cpp-python=={re.escape(pin)} \\\n +--hash=sha256:{digest}", LOCK)


def test_what_is_missing_is_said_in_one_sentence_before_anything_is_installed(tmp_path: Path):
    command = ["make", "tools", "PYTHON=/no/such/python"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert "apt-get install -y python3" in answer.stdout
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\n[ $1 = -V ] && echo Python 3.9.2 && exit 0\nexit 1\n")
    old.chmod(0o755)
    command = ["make", "tools", f"PYTHON={old}"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Python 3.9.2" in answer.stdout
    assert "3.11 or newer" in answer.stdout


def test_a_missing_compiler_is_named_with_its_package(tmp_path: Path):
    for tool in ("bash", "grep", "sed", "cat", "sha256sum", "cut"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    # the interpreter itself: what `python3` finds may be a script that looks for others on the PATH
    (tmp_path / "python3").symlink_to(Path(sys.executable).resolve())
    command = ["make", "tools", f"PATH={tmp_path}"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "apt-get install -y gcc g++" in answer.stdout, answer
