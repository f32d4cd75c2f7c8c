"""hubbot.confine.walls: what holds of every process with a token."""

import subprocess
import sys

import pytest

_DUMPABLE = "import ctypes; print('dumpable', ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"  # PR_GET_DUMPABLE


@pytest.mark.parametrize(
    "code",
    [
        f"from hubbot.cli import main\ndef program(*_, **__): {_DUMPABLE}\nmain([], program=program)",
        f"from hubbot.action import step\ndef act(*_): {_DUMPABLE}\nstep.act = act; step.main()",
        f"from hubbot.hub.read import stream\ndef write(_): {_DUMPABLE}; return {{}}\n"
        "stream._write = write; stream.main()",
        f"from hubbot.bot import cluster\ndef task(*_): {_DUMPABLE}\ncluster._attempt(task, lambda: True, None)",
    ],
    ids=["command line", "action", "reader of datasets", "Ray task"],
)
def test_what_holds_a_token_hides_its_memory_and_environment_before_it_does_anything(code):
    told = subprocess.run([sys.executable, "-c", code], input="{}", capture_output=True, text=True, check=False)
    assert "dumpable 0" in told.stdout, told.stderr
