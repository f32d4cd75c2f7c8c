"""C of ours, built for the machine once and kept beside llama.cpp's libraries."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from hubbot import llamacpp
from hubbot.environment import compiler
from hubbot.errors import ToolMissing

__all__ = ["build", "library", "main", "missing", "place", "source"]

_SOURCES = {"encoders": "search.h", "descent": "descent.c"}
_FLAGS = "-O3 -fno-math-errno -std=gnu11 -fPIC -shared".split()
_X86 = platform.machine().lower() in ("x86_64", "amd64")
_X86_LEVEL = "x86-64-v3"  # of the psABI; not `native`, as the library may move to another machine in an image
_X86_NEEDS = frozenset("avx2 bmi1 bmi2 f16c fma movbe".split())  # as /proc/cpuinfo names what that level adds


def source(name: str) -> Path:
    """What a library of ours is compiled from."""
    return Path(__file__).with_name(_SOURCES[name])


def place(name: str) -> Path:
    """Where a library lies; another text of its source has another name."""
    version = hashlib.sha256(source(name).read_bytes()).hexdigest()[:12]
    return llamacpp.find().bin / f"libhubbot-{name}-{version}.so"


def missing() -> list[str]:
    """The libraries that are not built; what they do is then done more slowly. Raises ToolMissing without llama.cpp."""
    return [name for name in _SOURCES if not place(name).is_file()]


@cache
def library(name: str) -> ctypes.CDLL | None:
    """A library of ours; None where it is not built or this CPU is too old for it."""
    path = place(name)
    if not path.is_file() or not runs_here():
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def build(name: str, text: str, *, flags: Sequence[str], links: Sequence[str] = ()) -> None:
    """Compile a C text into the library of that name. Raises ToolMissing where that fails."""
    into = place(name)
    with tempfile.TemporaryDirectory(prefix="hubbot-build-") as folder:
        source, made = Path(folder) / "library.c", Path(folder) / "library.so"
        source.write_text(text, encoding="utf-8")
        level = [f"-march={_X86_LEVEL}"] if _X86 else []
        command = [compiler(), *_FLAGS, *level, *flags, str(source), "-o", str(made), *links, "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            msg = f"{command[0]} cannot be run: {error}. Install a C compiler (apt install gcc)."
            raise ToolMissing(msg) from error
        if done.returncode:
            msg = f"{command[0]} could not build {into.name}: {done.stderr[-600:]}. hubbot works without it, slower."
            raise ToolMissing(msg)
        partial = into.with_suffix(".partial")
        partial.write_bytes(made.read_bytes())
        partial.chmod(0o755)
        partial.replace(into)


@cache
def runs_here() -> bool:
    """Whether this CPU has every instruction that a library may hold; a missing one would kill the process."""
    if not _X86:
        return True
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="ascii"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return False
    return flags is not None and set(flags[1].split()) >= _X86_NEEDS


def main(build_one: Callable[[], None]) -> None:
    """A module that builds its library, run as a program."""
    try:
        build_one()
    except ToolMissing as problem:
        sys.stderr.write(f"{problem}\n")
        sys.exit(problem.exit_code)
