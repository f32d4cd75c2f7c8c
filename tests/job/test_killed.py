"""A run that was killed goes on with the same command, and ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hubbot.record.file import read_record
from tests.jobs import options

KILLED = """
import sys
from hubbot.cli import main
main(sys.argv[1:])
"""
CHECKPOINT = ".work/sweep-*/streams.safetensors"


def kill_at(command: list[str], told: str, sign: str, *, after: float = 0.0, anew: bool = True) -> None:
    """Start a run and kill it some seconds after it has told a line and written the file that is the sign.

    anew: a sign that an earlier run has left is none.
    """
    out = Path(command[command.index("--out") + 1])
    started = time.time_ns() if anew else 0

    def written() -> bool:
        return any(path.stat().st_mtime_ns > started for path in out.glob(sign))

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as child:
        assert child.stderr is not None
        assert any(told in line for line in child.stderr), f"the run ended before it told {told!r}"
        while not written():
            assert child.poll() is None, f"the run ended before it wrote {sign}"
            time.sleep(0.002)
        time.sleep(after)
        assert child.poll() is None, "a run that has ended is no killed run"
        assert list(out.glob(CHECKPOINT)), "there is something to go on from"
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_files(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model("llama")

    def command(out: str) -> list[str]:
        asked = f"run {model} --out {tmp_path / out} --variants Q4_K_M,gptq-4bit-16g,bnb-nf4 --no-gate"
        return [sys.executable, "-c", KILLED, *asked.split(), *options(tmp_path)]

    subprocess.run(command("whole"), check=True, capture_output=True)
    chance = random.Random(4)
    kill_at(command("killed"), "== sweep", CHECKPOINT)
    kill_at(command("killed"), "== sweep", CHECKPOINT, after=chance.uniform(0, 0.3))
    # a folder whole, others not yet, unless the run before came as far
    kill_at(command("killed"), "== sweep", ".work/sweep-*/files/gptq/*.json", anew=False)
    kill_at(command("killed"), "== load check", "gguf/*.gguf", after=chance.uniform(0, 1), anew=False)
    subprocess.run(command("killed"), check=True, capture_output=True)
    whole, killed = (read_record(tmp_path / out / "hubbot.json") for out in ("whole", "killed"))
    for left, right in zip(whole.variants, killed.variants, strict=True):
        assert left.files == right.files
        assert left.score == right.score
