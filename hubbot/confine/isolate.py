"""Runs one function of hubbot in a child process that holds no token and can do no harm.

    answer = call("hubbot.job.pipeline:make", {"folder": "…"}, work=work)
    answer.value                      what the function returned, through JSON
    answer.walls                      what the kernel enforced: files, network, rights

The child starts with a listed few environment variables, a home of its own inside the work folder, no
network and no way to write outside the work and output folders (docs/security.md says which kernel
gives what). It is a new program, not a fork, so nothing of the parent's memory is in it. It dies with
its parent. Its HubbotErrors are raised again here, with their class and message.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from hubbot import errors, llamacpp, log
from hubbot.confine import walls
from hubbot.confine.walls import Walls
from hubbot.errors import HubbotError
from hubbot.machine.shortage import telling_what_ran_out

__all__ = ["Answer", "call", "scrubbed"]

_LARGEST_ANSWER = 256 * 2**20  # bytes; the child is not trusted to be brief
_GRACE = 10.0  # seconds between a forwarded signal and SIGKILL

# Variables that the child may see: names, and beginnings of names.
_NAMES = frozenset(
    "PATH LANG LANGUAGE TZ TERM COLUMNS LINES NO_COLOR FORCE_COLOR CI GITHUB_ACTIONS USER LOGNAME "
    "LD_LIBRARY_PATH LD_PRELOAD VIRTUAL_ENV CC CXX HUBBOT_LLAMA_CPP CUBLAS_WORKSPACE_CONFIG".split()
)
_BEGINNINGS = tuple("LC_ CUDA_ NVIDIA_ ROCR_ HIP_ OMP_ MKL_ OPENBLAS_ TORCH_ PYTORCH_ TRITON_ GGML_ GPTQMODEL_".split())
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "KEY")

_CHECKOUT = Path(__file__).resolve().parents[2]  # or site-packages
_READABLE = "/usr /bin /sbin /lib /lib32 /lib64 /etc /opt /nix /sys /proc".split()
_DEVICES = "null zero full random urandom tty shm nvidiactl nvidia-uvm nvidia-uvm-tools nvidia-modeset dri kfd".split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    value: Any  # JSON: None, bool, int, float, str, list, dict
    walls: Walls


def call(
    target: str,
    argument: Any,
    *,
    work: Path,
    writable: Sequence[Path] = (),
    readable: Sequence[Path] = (),
    environ: Mapping[str, str] | None = None,
) -> Answer:
    """Call `package.module:function` with one JSON-able argument in a confined child process.

    work: exists or is made; the child's home, caches and temporary files live under it.
    writable: further files and folders that the child may write (the output folder); they must exist.
    readable: further folders that it may read (the model); the system, Python and hubbot always are.
    environ: the environment to pick from, by default this process's.
    Raises the HubbotError that the function raised; HubbotError also where the child crashes.
    SIGINT and SIGTERM are handed to the child and take effect here once it has ended.
    """
    work = work.resolve()
    (work / "home" / "tmp").mkdir(parents=True, exist_ok=True)
    walls.hide_memory()
    environment = scrubbed(os.environ if environ is None else environ, home=work / "home") | _llama_cpp()
    request = {
        "target": target,
        "argument": argument,
        "parent": os.getpid(),
        "readable": [str(path) for path in (*_system_folders(environment), *(path.resolve() for path in readable))],
        "home": str(work / "home"),
        "writable": [str(path.resolve()) for path in (work, *writable)],
    }
    reply, code = _exchange(json.dumps(request).encode(), environment)
    answer = _judge(target, reply, code)
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


def scrubbed(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """The child's whole environment: an allow-list, so that a token of tomorrow stays out too."""
    kept = {
        name: value
        for name, value in environ.items()
        if (name in _NAMES or name.startswith(_BEGINNINGS)) and not any(word in name for word in _SECRET_WORDS)
    }
    roots = [str(_CHECKOUT)]
    roots += [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if Path(path).is_absolute()]
    return kept | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(roots)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }


def _llama_cpp() -> dict[str, str]:
    """Names the llama.cpp found here, as the child has another home to search."""
    place = llamacpp.place()
    return {"HUBBOT_LLAMA_CPP": str(place.absolute())} if (place / "source").is_dir() else {}


def _system_folders(environment: Mapping[str, str]) -> list[Path]:
    """What any program may read: the system, Python, hubbot, llama.cpp; not home, /tmp, /run or /var."""
    paths = [*_READABLE, sys.prefix, sys.base_prefix, sys.exec_prefix, *(path for path in sys.path if path)]
    paths += environment["PYTHONPATH"].split(os.pathsep)
    paths += environment.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    if llama := environment.get("HUBBOT_LLAMA_CPP"):
        paths += [llama, f"{llama}/source", f"{llama}/build"]  # each may be a link to somewhere else
    return list(dict.fromkeys(Path(path).resolve() for path in paths if path and Path(path).is_absolute()))


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


def _judge(target: str, reply: bytes, code: int) -> Answer:
    """The child's answer, or the error that it stands for."""
    try:
        answer = json.loads(reply)
        built = Walls(**answer["walls"])
        if "value" in answer:
            return Answer(value=answer["value"], walls=built)
        kind, message = str(answer["error"]), str(answer["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise HubbotError(_crash(target, code)) from None
    known = getattr(errors, kind, HubbotError) if kind in errors.__all__ else HubbotError
    raise known(message)


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
        request = json.loads(pipe.read())
    os.set_inheritable(reply, False)
    walls.die_with_parent(request["parent"], signal.SIGKILL)
    built = walls.raise_walls(
        home=Path(request["home"]),
        writable=[*(Path(path) for path in request["writable"]), *_devices(), _own_proc()],
        readable=[Path(path) for path in request["readable"]],
    )
    answer = _answer(request["target"], request["argument"], Path(request["writable"][0])) | {"walls": asdict(built)}
    with os.fdopen(reply, "wb") as pipe:
        pipe.write(json.dumps(answer).encode())
    return 0 if "value" in answer else 1


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


def _answer(target: str, argument: Any, work: Path) -> dict[str, Any]:
    module, _, function = target.partition(":")
    try:
        with telling_what_ran_out(work):
            value = getattr(importlib.import_module(module), function)(argument)
        json.dumps(value)
    except HubbotError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001 -- the boundary: nothing but JSON leaves this process
        traceback.print_exc()
        message = f"{target} failed with {type(error).__name__}: {error}. This is a defect of hubbot; please report it."
        return {"error": "HubbotError", "message": message}
    return {"value": value}


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), int(sys.argv[2])))
