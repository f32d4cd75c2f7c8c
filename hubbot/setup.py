"""Builds the pinned llama.cpp once for this machine: what `hubbot setup` does.

    python -m hubbot.setup FOLDER [-DGGML_CUDA=ON …]      the same with no package but pip installed

The source release of llama-cpp-python carries llama.cpp's tree and the bindings to it. pip fetches it from wherever
pip is set up to look, and refuses any file but the pinned one. The build is made aside and renamed, so that nobody
finds half of one, and under a lock, so that two processes make it once.
"""

from __future__ import annotations

import compileall
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from py_compile import PycInvalidationMode

from hubbot.environment import PROCESS, search_path
from hubbot.errors import ToolMissing
from hubbot.llamacpp import PIN

__all__ = ["alone", "build", "end_of", "run", "tools"]

SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"  # of the source release
_TREE = f"llama_cpp_python-{PIN}/"
_LAST = "bin/llama-bench"  # the program that is linked last
_MULTIMODAL = "libmtmd.*"  # what builds of earlier versions lack
_WANTED = "wanted.txt"  # the one requirement that pip is given
_TARGETS = ("llama", "llama-quantize", "llama-imatrix", "llama-perplexity", "mtmd", "llama-bench")
_LEFT_OUT = ("docs/", "media/", "benches/", "tools/ui/")
_VOCABULARIES = tuple(  # of real models, for the tests
    f"models/ggml-vocab-{name}.gguf"
    for name in ("falcon", "gpt-2", "gpt-neox", "llama-bpe", "llama-spm", "qwen2", "starcoder")
)
# Without AMX: ggml's AMX kernels were seen to crash in virtual machines whose CPU flags promise it.
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON "
    "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF "
    "-DCMAKE_CXX_FLAGS=-U__AMX_INT8__ -DCMAKE_C_FLAGS=-U__AMX_INT8__"
).split()
# A compiler whose own folder has libstdc++ as an archive alone links it into every library. Left visible, these copies
# and the one that Python's libraries brought mix, and the load check dies in std::codecvt.
_OWN_LIBSTDCXX = ("-DCMAKE_SHARED_LINKER_FLAGS=-Wl,--exclude-libs,libstdc++.a",) if sys.platform == "linux" else ()


def build(place: Path, options: Sequence[str] = (), *, say: Callable[[str], None] = print) -> None:
    """Make `place` a finished llama.cpp: source/, build/bin/ and bindings/. Nothing is done where it is one.

    options: further ones for cmake. Raises ToolMissing with the next step where a tool lacks or a step fails; the
    next call goes on where it stopped.
    """
    if finished(place):
        return
    if not _of_an_earlier_version(place):
        _refuse_what_lies_there(place)
    with alone(place):
        if finished(place):
            return
        path = tools()
        part = place.with_name(f"{place.name}.partial")
        if _of_an_earlier_version(place):
            shutil.rmtree(part, ignore_errors=True)
            place.rename(part)
        part.mkdir(exist_ok=True)
        say(f"setup: building llama.cpp once, in {place} (less than 10 minutes on two cores)")
        release = _fetch(part, path)
        _unpack(release, part)
        _compile(part, options, path)
        _compile_python(part)
        for file in (release, part / _WANTED):
            file.unlink(missing_ok=True)
        part.rename(place)


def finished(place: Path) -> bool:
    """Whether there is a build, and bindings in it or, for a build of somebody's own, in this environment."""
    bound = (place / "bindings" / "llama_cpp").is_dir() or importlib.util.find_spec("llama_cpp") is not None
    return bound and (place / "build" / _LAST).is_file() and any((place / "build" / "bin").glob(_MULTIMODAL))


def _of_an_earlier_version(place: Path) -> bool:
    """Whether hubbot has built what lies there: all of it but what is wanted since."""
    return (place / "log").is_file() and (place / "bindings").is_dir() and (place / "build" / _LAST).is_file()


def _refuse_what_lies_there(place: Path) -> None:
    if place.is_dir() and any(place.iterdir()):
        msg = f"{place} holds files, but no finished llama.cpp with bindings. Remove the folder, or name another by HUBBOT_LLAMA_CPP, and run `hubbot setup` again."
        raise ToolMissing(msg)


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """One process at a time makes what will lie there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def tools() -> str:
    """The search path for programs, this environment's first. Raises ToolMissing naming all that lack."""
    path = os.pathsep.join((sysconfig.get_path("scripts"), search_path()))
    missing = [name for name in ("cmake", "ninja") if not shutil.which(name, path=path)]
    missing += ["pip"] if importlib.util.find_spec("pip") is None else []
    compilers = [name for name in ("cc", "c++") if not shutil.which(name, path=path)]
    if missing or compilers:
        install = ["`pip install 'hubbot[gguf]'`"] if missing else []
        install += ["a compiler of C++ (`apt-get install gcc g++`)"] if compilers else []
        msg = f"Building llama.cpp needs {', '.join(missing + compilers)}, found neither on the PATH nor in this environment. Install {' and '.join(install)}, then run `hubbot setup` again."
        raise ToolMissing(msg)
    return path


def _fetch(part: Path, path: str) -> Path:
    """The source release, checked. pip asks its build backend for metadata, but only once the sha256 is right."""
    release = part / f"llama_cpp_python-{PIN}.tar.gz"
    if release.is_file() and _sha256(release) == SHA256:
        return release
    wanted = part / _WANTED
    wanted.write_text(f"llama-cpp-python=={PIN} --hash=sha256:{SHA256}\n", encoding="ascii")
    command = f"{sys.executable} -m pip download -qq --disable-pip-version-check --no-deps --require-hashes".split()
    command += ["--no-binary", "llama-cpp-python", "--dest", str(part), "--requirement", str(wanted)]
    if not run(command, part / "log", path) or not release.is_file():
        msg = f"pip could not fetch the source release of llama-cpp-python {PIN}: {end_of(part / 'log')}\nLook at pip's settings and the network, then run `hubbot setup` again."
        raise ToolMissing(msg)
    return release


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(release: Path, into: Path) -> None:
    """The tree without what no build needs -> source/, the bindings -> bindings/llama_cpp/."""
    for name in ("source", "bindings"):
        shutil.rmtree(into / name, ignore_errors=True)
    with tarfile.open(release) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)  # 3.11.4 and newer
        for member in archive:
            if member.isfile() and (file := _place_of(member.name)):
                member.name = file  # TarInfo.replace is of 3.11.4
                archive.extract(member, into)


def _place_of(member: str) -> str | None:
    """Where a file of the release goes; None: nowhere."""
    path = member.removeprefix(_TREE)
    if path.startswith("llama_cpp/"):
        return f"bindings/{path}"
    inner = path.removeprefix("vendor/llama.cpp/")
    if inner == path or inner.startswith(_LEFT_OUT):
        return None
    return None if inner.startswith("models/") and inner not in _VOCABULARIES else f"source/{inner}"


def _compile(part: Path, options: Sequence[str], path: str) -> None:
    """cmake and ninja; object files go when all is linked."""
    made = part / "build"
    steps = (
        ["cmake", "-S", str(part / "source"), "-B", str(made), "-G", "Ninja", *_OPTIONS, *_OWN_LIBSTDCXX, *options],
        ["cmake", "--build", str(made), "--target", *_TARGETS],
    )
    for command in steps:
        if not run(command, part / "log", path):
            msg = f"llama.cpp did not build: {end_of(part / 'log')}\n{part / 'log'} has the whole story; `hubbot setup` goes on where it stopped."
            raise ToolMissing(msg)
    for file in made.rglob("*.o"):
        file.unlink()


def _compile_python(part: Path) -> None:
    """Bytecode of the converter and the bindings: the processes that import them for every plan write none themselves."""
    for folder in ("source/conversion", "source/gguf-py/gguf", "bindings"):
        compileall.compile_dir(part / folder, quiet=2, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)


def run(command: Sequence[str], log: Path, path: str) -> bool:
    """Whether the command ended well. Its output is added to the log; `path` is where it and its children find programs."""
    program = shutil.which(command[0], path=path) or command[0]
    with log.open("a", encoding="utf-8") as story:
        done = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=story,
            stderr=subprocess.STDOUT,
            env={**PROCESS, "PATH": path},
            check=False,
        )
    return done.returncode == 0


def end_of(log: Path) -> str:
    """Its last twenty lines."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-20:])


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]), sys.argv[2:])
    except ToolMissing as problem:
        sys.stderr.write(f"{problem}\n")
        sys.exit(problem.exit_code)
