"""What hubbot says reaches the reader while other programs in its process are kept from the screen."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

BOTH_SPEAK = """
import os, sys, threading
from pathlib import Path
from hubbot import log

def banners():
    os.write(2, b"native\\n")
    print("printed", flush=True)
    sys.stderr.write("complained\\n")

with log.progress("reading", 2, "files") as advance:
    with log.aside(Path(sys.argv[1])):
        banners()
        for speak in (log.say, log.warning):
            thread = threading.Thread(target=speak, args=("from a thread",))
            thread.start()
            thread.join()
        advance(2)
    print("printed again", flush=True)
log.say("and after it")
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_words_of_a_thread_reach_the_reader_and_banners_a_file(tmp_path: Path, terminal: bool) -> None:
    shown, theirs = _spoken(tmp_path / "aside.log", terminal=terminal)
    assert shown.count("from a thread") == 2
    assert "warning: from a thread" in shown
    assert "2/2" in shown
    assert "printed again" in shown
    assert shown.rstrip().endswith("and after it")
    for banner in ("native", "printed\n", "complained"):
        assert banner in theirs
        assert banner not in shown
    assert "thread" not in theirs


def _spoken(path: Path, *, terminal: bool) -> tuple[str, str]:
    """What is on the screen, and what is in the file."""
    command = [sys.executable, "-c", BOTH_SPEAK, str(path)]
    environment = {name: value for name, value in os.environ.items() if name != "GITHUB_ACTIONS"} | {"TERM": "xterm"}
    if not terminal:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        )
        return done.stdout, path.read_text()
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while block := _read(ours):
            shown += block
    os.close(ours)
    assert process.returncode == 0
    return shown.decode().replace("\r\n", "\n"), path.read_text()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # all writers are gone
        return b""
