"""`python -m hubbot.confine.program`: a stage's process. It is told what to do, puts up its walls, and only then reads anything.

walls, a line       said before anything of a stranger's is read, so it is to be believed
end, a line         whether there is an answer; from here on it may be a stranger's word
answer
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

from hubbot.confine import walls
from hubbot.confine.keeper import KERNELS, stand_between
from hubbot.confine.limits import Limits
from hubbot.confine.places import HUBBOT
from hubbot.confine.stage import decode, encode, perform
from hubbot.confine.walls import Walls
from hubbot.errors import HubbotError
from hubbot.machine.shortage import translated_shortages

__all__ = ["End", "Start"]

_DEVICES = "null zero full random urandom tty nvidiactl nvidia-uvm nvidia-uvm-tools nvidia-modeset dri kfd".split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The first line of what the child is told; the question follows."""

    target: str
    parent: int  # process id
    limits: Limits
    home: Path
    writable: tuple[Path, ...]  # the work folder first
    readable: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The line after the walls; the answer follows where there is no error."""

    error: str | None = None  # name of a class of hubbot.errors
    message: str = ""


def _main(ask: int, reply: int) -> int:
    with os.fdopen(ask, "rb") as pipe:
        head, _, question = pipe.read().partition(b"\n")
    start = decode(Start, head)
    os.set_inheritable(reply, False)
    processes = stand_between(start.parent)
    built = replace(_raise(start), processes=processes)
    with os.fdopen(reply, "wb") as pipe:
        pipe.write(encode(Walls, built) + b"\n")
        pipe.flush()  # before anything of a stranger's is read: what is said later may be their word
        end, answer = _answer(start, question)
        pipe.write(encode(End, end) + b"\n" + answer)
    return 0 if end.error is None else 1


def _raise(start: Start) -> Walls:
    start.limits.keep()
    return walls.raise_walls(
        home=start.home,
        writable=[*start.writable, *_devices(), _own_proc()],
        readable=start.readable,
        listed=[HUBBOT.parent],
    )


def _devices() -> list[Path]:
    """The device files that Python, torch and the GPU's driver need; no disk, no memory."""
    folder = Path("/dev")
    return [*(folder / name for name in _DEVICES), *folder.glob("nvidia[0-9]*"), *folder.glob("nvidia-caps/*")]


def _own_proc() -> Path:
    """Where CUDA names its threads, without which it does not start: a process's own folder in /proc.

    Programs that the child starts have other folders, so all of /proc where the kernel's settings are out of reach anyway: they
    are read-only in the keeper's namespace and in containers, and nobody's but root's elsewhere. Else the child's own alone.
    """
    settable = any(os.access(Path("/proc", name), os.W_OK) for name in (*KERNELS, "sys/kernel/core_pattern"))
    return Path("/proc/self") if settable else Path("/proc")


def _answer(start: Start, question: bytes) -> tuple[End, bytes]:
    try:
        with translated_shortages(start.writable[0]):
            _import(start.target)
            return End(), perform(start.target, question)
    except HubbotError as error:
        return End(error=type(error).__name__, message=str(error)), b""
    except BaseException as error:  # the boundary: nothing but an answer leaves this process
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":  # Rust's panics are none
            raise
        traceback.print_exc()
        message = (
            f"{start.target} failed with {type(error).__name__}: {error}. This is a defect of hubbot; please report it."
        )
        return End(error=HubbotError.__name__, message=message), b""


def _import(target: str) -> None:
    """The stage's module and all that it imports, of which nothing is garbage: looking for some takes a seventh of the time."""
    gc.disable()
    importlib.import_module(target.partition(":")[0])
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), int(sys.argv[2])))
