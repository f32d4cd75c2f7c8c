"""`.ci/run` on a machine of a few stubs: what it installs, as whom, and what it asks of the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.workflows.test_workflows import ROOT

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
STUB = '#!/bin/bash\necho "$(basename "$0") $*" >> "$TOLD"\n'
HERE = ("git", "cc", "c++", "npm", "make", "apt-get")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A checkout with `.ci/run` alone, and programs of which each writes down how it was called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in HERE:
        (programs / name).write_text(STUB)
    (programs / "sudo").write_text(STUB + 'exec "$@"\n')
    for path in programs.iterdir():
        path.chmod(0o755)
    for name in ("bash", "env", "dirname", "basename"):
        (programs / name).symlink_to(shutil.which(name))
    (programs / "python3").symlink_to(sys.executable)
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    (tmp_path / "told").touch()
    (tmp_path / "told").chmod(0o666)
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()).resolve():
            break
        folder.chmod(0o755)
    return tmp_path


def told_by(machine: Path, user: int) -> list[str]:
    environ = {"PATH": str(machine / "bin"), "TOLD": str(machine / "told")}
    done = subprocess.run(
        ["/bin/bash", str(machine / ".ci" / "run")], env=environ, user=user, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return (machine / "told").read_text().splitlines()


def test_what_the_tests_need_is_installed_a_browser_too(machine):
    lines = told_by(machine, os.geteuid())
    [install] = [line for line in lines if line.startswith("apt-get install")]
    assert "chromium" in install.split()
    assert "git" not in install.split(), "what is there is left alone"


@as_root
def test_root_installs_by_itself(machine):
    lines = told_by(machine, 0)
    assert not [line for line in lines if line.startswith("sudo")]
    assert "make test" in lines


@as_root
def test_another_user_installs_through_sudo(machine):
    lines = told_by(machine, 65534)
    assert [line.split()[1] for line in lines if line.startswith("sudo")] == ["apt-get", "env"]
    assert "make test" in lines
