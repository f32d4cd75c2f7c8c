"""Runs one stage of hubbot in a child process that holds no token and can do no harm.

    answer = call(SURVEY, SurveyQuestion(source=source, …), work=work)
    answer.value                      what the stage's function returned: a SurveyAnswer
    answer.walls                      what the kernel enforced: files, network, rights

The child starts with a listed few environment variables, a home of its own inside the work folder, no
network and no way to write outside the work and output folders (docs/security.md says which kernel
gives what). It is a new program, not a fork, so nothing of the parent's memory is in it. It and all that
it starts end with its parent, when it has answered, and when its time is over. Its HubbotErrors are
raised again here, with their class and message.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

from pydantic import ValidationError

from hubbot import log
from hubbot.confine import walls
from hubbot.confine.environment import confined
from hubbot.confine.limits import limits_of
from hubbot.confine.places import system_places
from hubbot.confine.program import End, Start
from hubbot.confine.stage import Stage, decode, encode
from hubbot.confine.walls import Walls
from hubbot.environment import PROCESS
from hubbot.errors import HubbotError

__all__ = ["Answer", "Call", "call"]

Q = TypeVar("Q")
A = TypeVar("A")

_LARGEST_ANSWER = 256 * 2**20  # bytes; the child is not trusted to be brief
_GRACE = 10.0  # seconds between a forwarded signal and SIGKILL
_LOOK = 1.0  # seconds between looks at whether the child lives
_LATE = 1000  # no exit code


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[A]):
    value: A
    walls: Walls


class Call(Protocol):
    """Who asks a stage: `call`, or in tests the same without a process of its own."""

    def __call__(
        self,
        stage: Stage[Q, A],
        question: Q,
        *,
        work: Path,
        writable: Sequence[Path],
        readable: Sequence[Path],
        seconds: float,
        memory: int | None,
    ) -> Answer[A]: ...


def call(
    stage: Stage[Q, A],
    question: Q,
    *,
    work: Path,
    writable: Sequence[Path] = (),
    readable: Sequence[Path] = (),
    seconds: float = 3600,
    memory: int | None = None,
    environ: Mapping[str, str] = PROCESS,
) -> Answer[A]:
    """Ask a stage its question in a confined child process.

    work: exists or is made; the child's home, caches and temporary files live under it.
    writable: further files and folders that the child may write (the output folder); they must exist.
    readable: further folders that it may read (the model), besides `hubbot.confine.places`.
    seconds: how long it may take. memory: bytes that it is meant to keep to; up to twice as many are granted.
    environ: the environment to pick from, by default this process's.
    Raises the HubbotError that the function raised; HubbotError also where the child crashes, takes longer or gives no
    answer.
    SIGINT and SIGTERM are handed to the child and take effect here once it has ended.
    """
    work = work.resolve()
    (work / "home" / "tmp").mkdir(parents=True, exist_ok=True)
    walls.hide_memory()
    environment = confined(environ, home=work / "home")
    start = Start(
        target=stage.target,
        parent=os.getpid(),
        limits=limits_of(work, seconds=seconds, memory=memory),
        readable=(*system_places(environment), *(path.resolve() for path in readable)),
        home=work / "home",
        writable=tuple(path.resolve() for path in (work, *writable)),
    )
    message = encode(Start, start) + b"\n" + encode(stage.question, question)
    answer = _judge(stage, *_exchange(message, environment, seconds))
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


def _exchange(request: bytes, environment: dict[str, str], seconds: float) -> tuple[bytes, int]:
    """Start the child, write the request, read the answer. Returns the answer and the exit code, as `_code` tells it."""
    ask_read, ask_write = os.pipe()
    reply_read, reply_write = os.pipe()
    command = [sys.executable, "-P", "-m", "hubbot.confine.program", str(ask_read), str(reply_write)]
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
            with suppress(BrokenPipeError), os.fdopen(ask_write, "wb") as ask:
                ask.write(request)
            answer, ended = _read(reply.fileno(), child, seconds)
        except BaseException:
            _stop(child)
            raise
        if not ended:
            _stop(child)
        return answer, _LATE if ended is None else _code(child.wait())


def _read(reply: int, child: subprocess.Popen[bytes], seconds: float) -> tuple[bytes, bool | None]:
    """What the child says until it ends; False beside what is too long, None beside what takes too long.

    Its end counts, not the pipe's: what it has started may hold that open.
    """
    answer, deadline = bytearray(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        over = child.poll() is not None
        if select.select([reply], [], [], 0 if over else _LOOK)[0]:
            piece = os.read(reply, 2**20)
            answer += piece
            if not piece:
                return bytes(answer), True
            if len(answer) > _LARGEST_ANSWER:
                return b"", False
        elif over:
            return bytes(answer), True
    return b"", None


def _code(status: int) -> int:
    """An exit code; a negative number of a signal for the child's that its keeper tells as 128 and more."""
    return 128 - status if status > 128 else status


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Have the keeper end all that it keeps, then itself."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_GRACE)
        except subprocess.TimeoutExpired:
            _kill(child)


@contextmanager
def _forwarding(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand SIGINT and SIGTERM to the child; let them take effect here after it has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    patience = threading.Timer(_GRACE, _kill, (child,))

    def forward(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 -- the signature is signal's
        received.append(number)  # first: another one may come while the thread starts
        if len(received) == 1:
            patience.start()
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
    """The child's answer, or the error that it stands for.

    What it says of its walls it has said before it read anything of a stranger's.
    """
    first, _, rest = reply.partition(b"\n")
    head, _, body = rest.partition(b"\n")
    try:
        built, end = decode(Walls, first), decode(End, head)
    except (ValueError, RecursionError):
        raise HubbotError(_crash(stage.target, code)) from None
    if end.error is not None:
        raise HubbotError.named(end.error, end.message)
    try:
        return Answer(value=decode(stage.answer, body), walls=built)
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
    if code == _LATE:
        return (
            f"The process that runs {target} did not end in the time that is many times what such a model takes, and was "
            "ended. Where the files are a stranger's, they may be made so; else please report it as a defect of hubbot."
        )
    ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    advice = _ADVICE.get(-code, "Its own output above says where; please report it as a defect of hubbot.")
    return f"The process that runs {target} {ended} and gave no answer. {advice}"


_ADVICE: dict[int, str] = {
    signal.SIGKILL: "The kernel kills the largest process when memory runs out: set budget.ram lower or free some memory.",
    signal.SIGABRT: "Libraries end so when they are refused more memory than any honest model needs here; their own words stand "
    "above. A stranger's files may be made so; else please report it as a defect of hubbot.",
}
