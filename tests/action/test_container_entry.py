"""The image's entry point: whose files it writes, and what it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give away")

ACT = """
import os, sys
from pathlib import Path
from hubbot.action.container import become_owner_of
become_owner_of(Path(sys.argv[1]))
(Path(sys.argv[1]) / "made").write_text("x")
print(os.getuid(), os.getgid(), os.getgroups(), os.access(os.environ["HOME"], os.W_OK), os.environ.get("USER"))
"""


def become(folder: Path, **environ: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", ACT, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environ},
    )
    return done.stdout.split()


@pytest.fixture
def theirs(tmp_path_factory):
    """A folder of another user's that this user can reach, as a runner's workspace is."""
    folder = tmp_path_factory.mktemp("workspace")
    for parent in (folder, *folder.parents):
        if parent == Path(tempfile.gettempdir()).resolve():
            break
        parent.chmod(0o755)
    os.chown(folder, 4321, 4322)
    return folder


@as_root
def test_root_becomes_who_owns_the_workspace(theirs):
    assert become(theirs, HOME="/root")[:5] == ["4321", "4322", "[]", "True", "hubbot"]
    assert (theirs / "made").stat().st_uid == 4321


@as_root
def test_root_that_was_given_away_cannot_be_taken_back(theirs):
    code = ACT + "\ntry:\n    os.setuid(0)\nexcept PermissionError:\n    print('refused')\n"
    done = subprocess.run([sys.executable, "-c", code, str(theirs)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "refused"


@as_root
def test_root_stays_where_the_workspace_is_roots(tmp_path):
    assert become(tmp_path)[0] == "0"


DEAF = """
import os, signal
{before}
os.kill(os.getpid(), signal.SIGTERM)
print(os.getpid(), "is deaf")
"""


@as_root
def test_the_first_process_of_a_container_ends_at_sigterm():
    def first(before: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-c", DEAF.format(before=before)]
        return subprocess.run(["unshare", "--pid", "--fork", *program], capture_output=True, text=True, check=False)

    plain = first("")
    if plain.stdout != "1 is deaf\n":
        pytest.skip(f"no process namespaces here: {plain.stderr}")
    ended = first("from hubbot.action.container import heed_sigterm; heed_sigterm()")
    assert (ended.returncode, ended.stdout) == (143, "")
