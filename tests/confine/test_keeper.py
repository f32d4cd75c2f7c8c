"""hubbot.confine.keeper: with a namespace and without one, nothing outlives what it keeps, nor its parent."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hubbot.confine.keeper import NAMESPACE, SUBREAPER

TESTS = Path(__file__).parents[1]

# The worker starts a process of its own session that is deaf to SIGTERM and holds a lock, then answers or lingers.
_PROGRAM = """
import os, sys
sys.path.insert(0, sys.argv[4])
from hubbot.confine.keeper import stand_between
import inside
print(stand_between(os.getppid(), namespace=sys.argv[1] == "pid namespace"), flush=True)
getattr(inside, sys.argv[2])({"lock": sys.argv[3]})
if sys.argv[2] == "leave_behind":
    os._exit(7)
"""
_PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def _command(program, *words):
    return [sys.executable, "-c", program, *words]


def _free(lock):
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _granted(way, told):
    if way == NAMESPACE and SUBREAPER in told:
        pytest.skip("this kernel lets nobody make a namespace here")
    assert way in told


@pytest.mark.parametrize("way", [NAMESPACE, SUBREAPER])
def test_what_is_left_ends_with_the_worker_whose_exit_code_is_passed_on(tmp_path, way):
    lock = tmp_path / "lock"
    ended = subprocess.run(
        _command(_PROGRAM, way, "leave_behind", str(lock), str(TESTS)), capture_output=True, text=True, check=False
    )
    _granted(way, ended.stdout)
    assert ended.returncode == 7
    assert _free(lock)


@pytest.mark.parametrize("way", [NAMESPACE, SUBREAPER])
@pytest.mark.parametrize("whom", ["keeper", "parent"])
def test_everything_ends_with_the_keeper_that_is_told_to_and_with_a_killed_parent(tmp_path, way, whom):
    lock = tmp_path / "lock"
    words = [_PROGRAM, way, "linger", str(lock), str(TESTS)]
    command = _command(*words) if whom == "keeper" else _command(_PARENT, *words)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        _granted(way, started.stdout.readline())
        _wait_for(lambda: lock.exists() and not _free(lock))
        started.send_signal(signal.SIGTERM if whom == "keeper" else signal.SIGKILL)
        started.wait(timeout=30)
        _wait_for(lambda: _free(lock))


def test_who_is_no_root_gets_a_namespace_where_it_may_have_one(tmp_path):
    code = (
        "import os, sys\nfrom hubbot.confine import keeper\nimport encodings.idna\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534); keeper.prctl(4, 1)\n"
        "print(keeper.stand_between(os.getppid()), os.geteuid(), os.getpid())"
    )
    told = subprocess.run(_command(code), capture_output=True, text=True, check=True).stdout.rsplit(maxsplit=2)
    _granted(NAMESPACE, told[0])
    assert told[1:] == [str(os.geteuid() or 65534), "2"]
