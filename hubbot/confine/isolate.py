"""Runs one stage of hubbot in a child process that holds no token and can do no harm.

    answer = call(SURVEY, SurveyQuestion(source=source, …), work=work)
    answer.value                      what the stage's function returned: a SurveyAnswer
    answer.walls                      what the kernel enforced: files, network, rights

The child starts with a listed few environment variables, a home of its own inside the work folder, no
network and no way to write outside the work and output folders (docs/security.md says which kernel
gives what). It is a new program, not a fork, so nothing of the parent's memory is in it. It dies with
its parent. Its HubbotErrors are raised again here, with their class and message.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

from pydantic import ValidationError

from hubbot import log
from hubbot.confine import walls
from hubbot.confine.environment import confined
from hubbot.confine.places import HUBBOT, system_places
from hubbot.confine.stage import Stage, decode, encode, perform
from hubbot.confine.walls import Walls
from hubbot.environment import PROCESS
from hubbot.errors import HubbotError
from hubbot.machine.shortage import translated_shortages

__all__ = ["Answer", "Call", "call"]

Q = TypeVar("Q")
A = TypeVar("A")

_LARGEST_ANSWER = 256 * 2**20  # bytes; the child is not trusted to be brief
_GRACE = 10.0  # seconds between a forwarded signal and SIGKILL

_DEVICES = "null zero full random urandom tty shm nvidiactl nvidia-uvm nvidia-uvm-tools nvidia-modeset dri kfd".split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[A]):
    value: A
    walls: Walls


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """The first line of what the child is told; the question follows."""

    target: str
    parent: int  # process id
    home: Path
    writable: tuple[Path, ...]  # the work folder first
    readable: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """The first line of what the child says; the answer follows where there is no error."""

    walls: Walls
    error: str | None = None  # name of a class of hubbot.errors
    message: str = ""


class Call(Protocol):
    """Who asks a stage: `call`, or in tests the same without a process of its own."""

    def __call__(
        self, stage: Stage[Q, A], question: Q, *, work: Path, writable: Sequence[Path], readable: Sequence[Path]
    ) -> Answer[A]: ...


def call(
    stage: Stage[Q, A],
    question: Q,
    *,
    work: Path,
    writable: Sequence[Path] = (),
    readable: Sequence[Path] = (),
    environ: Mapping[str, str] = PROCESS,
) -> Answer[A]:
    """Ask a stage its question in a confined child process.

    work: exists or is made; the child's home, caches and temporary files live under it.
    writable: further files and folders that the child may write (the output folder); they must exist.
    readable: further folders that it may read (the model), besides `hubbot.confine.places`.
    environ: the environment to pick from, by default this process's.
    Raises the HubbotError that the function raised; HubbotError also where the child crashes or its answer is none.
    SIGINT and SIGTERM are handed to the child and take effect here once it has ended.
    """
    work = work.resolve()
    (work / "home" / "tmp").mkdir(parents=True, exist_ok=True)
    walls.hide_memory()
    environment = confined(environ, home=work / "home")
    start = _Start(
        target=stage.target,
        parent=os.getpid(),
        readable=(*system_places(environment), *(path.resolve() for path in readable)),
        home=work / "home",
        writable=tuple(path.resolve() for path in (work, *writable)),
    )
    message = encode(_Start, start) + b"\n" + encode(stage.question, question)
    answer = _judge(stage, *_exchange(message, environment))
    if not answer.walls.complete:
        _warn(answer.walls)
    return answer


@cache
def _warn(built: Walls) -> None:
    """Once a process: a missing wall must not go unnoticed."""
    log.warning(
        f"The kernel builds less than the whole wall around strangers' files (files: {built.files}, network: "
        f"{built.network}). `hubbot doctor` and docs/security.md say what that means."
    )


# --- the parent's side ---------------------------------------------------------------------------------


def _exchange(request: bytes, environment: dict[str, str]) -> tuple[bytes, int]:
    """Start the child, write the request, read the answer. Returns the answer and the exit code."""
    ask_read, ask_write = os.pipe()
    reply_read, reply_write = os.pipe()
    command = [sys.executable, "-P", "-m", "hubbot.confine.isolate", str(ask_read), str(reply_write)]
    try:
        child = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=(ask_read, reply_write),
            start_new_session=True,  # no terminal to type into; its signals come through us, once
        )
    finally:
        os.close(ask_read)
        os.close(reply_write)
    with _forwarding(child), os.fdopen(reply_read, "rb") as reply:
        try:
            with os.fdopen(ask_write, "wb") as ask:
                ask.write(request)
            answer = reply.read(_LARGEST_ANSWER + 1)
        except BrokenPipeError:
            answer = b""
        except BaseException:
            _kill(child)
            raise
        if len(answer) > _LARGEST_ANSWER:
            _kill(child)
        return answer, child.wait()


@contextmanager
def _forwarding(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand SIGINT and SIGTERM to the child; let them take effect here after it has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    patience = threading.Timer(_GRACE, _kill, (child,))

    def forward(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 -- the signature is signal's
        if not received:
            patience.start()
        received.append(number)
        child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        patience.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)


def _judge(stage: Stage[Any, A], reply: bytes, code: int) -> Answer[A]:
    """The child's answer, or the error that it stands for."""
    head, _, body = reply.partition(b"\n")
    try:
        end = decode(_End, head)
    except (ValueError, RecursionError):
        raise HubbotError(_crash(stage.target, code)) from None
    if end.error is not None:
        raise HubbotError.named(end.error, end.message)
    try:
        return Answer(value=decode(stage.answer, body), walls=end.walls)
    except ValidationError as error:
        raise HubbotError(_no_answer(stage.target, error)) from None


def _no_answer(target: str, error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part)[:60] for part in first["loc"]) or "the whole"
    return (
        f"The process that runs {target} gave an answer that is none ({where}: {first['msg'][:200]}). It reads the model's "
        "files: if they come from somebody whom you do not trust, use nothing of this run; if not, please report a "
        "defect of hubbot."
    )


def _crash(target: str, code: int) -> str:
    ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    advice = (
        "The kernel kills the largest process when memory runs out: set budget.ram lower or free some memory."
        if code == -signal.SIGKILL
        else "Its own output above says where; please report it as a defect of hubbot."
    )
    return f"The process that runs {target} {ended} and gave no answer. {advice}"


# --- the child's side ----------------------------------------------------------------------------------


def _main(ask: int, reply: int) -> int:
    with os.fdopen(ask, "rb") as pipe:
        head, _, question = pipe.read().partition(b"\n")
    start = decode(_Start, head)
    os.set_inheritable(reply, False)
    walls.die_with_parent(start.parent, signal.SIGKILL)
    built = walls.raise_walls(
        home=start.home,
        writable=[*start.writable, *_devices(), _own_proc()],
        readable=start.readable,
        listed=[HUBBOT.parent],
    )
    end, answer = _answer(start, question, built)
    with os.fdopen(reply, "wb") as pipe:
        pipe.write(encode(_End, end) + b"\n" + answer)
    return 0 if end.error is None else 1


def _devices() -> list[Path]:
    """The device files that Python, torch and the GPU's driver need; no disk, no memory."""
    folder = Path("/dev")
    return [*(folder / name for name in _DEVICES), *folder.glob("nvidia[0-9]*"), *folder.glob("nvidia-caps/*")]


def _own_proc() -> Path:
    """Where CUDA names its threads, without which it does not start: the process's own folder in /proc.

    Programs that the child starts have other folders, so all of /proc where the kernel's settings are
    out of reach anyway (not root, or a container), and only the child's own where root could change them.
    """
    return Path("/proc/self") if os.access("/proc/sys/kernel/core_pattern", os.W_OK) else Path("/proc")


def _answer(start: _Start, question: bytes, built: Walls) -> tuple[_End, bytes]:
    try:
        with translated_shortages(start.writable[0]):
            return _End(walls=built), perform(start.target, question)
    except HubbotError as error:
        return _End(walls=built, error=type(error).__name__, message=str(error)), b""
    except Exception as error:  # noqa: BLE001 -- the boundary: nothing but an answer leaves this process
        traceback.print_exc()
        message = (
            f"{start.target} failed with {type(error).__name__}: {error}. This is a defect of hubbot; please report it."
        )
        return _End(walls=built, error=HubbotError.__name__, message=message), b""


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), int(sys.argv[2])))
