"""Builds the part of llama.cpp that computes on NVIDIA's cards: what `hubbot setup` does where it sees one.

    python -m hubbot.setup_cuda FOLDER 8.0 9.0 …      for cards of these compute capabilities, seen or not

It is a library of its own beside a finished llama.cpp, in cuda/, which llama.cpp loads where a card is asked for; a
machine without cards, or one where this build fails, loses nothing else. The compiler is the machine's nvcc where cuBLAS is
beside it, else NVIDIA's own packages, which pip fetches and which go again afterwards, with the libraries that torch brought.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hubbot.errors import ToolMissing
from hubbot.setup import alone, end_of, run, tools

__all__ = ["Capability", "build"]

Capability = tuple[int, int]  # (9, 0) of an H100

# Compiler, its device code generator, headers of both, CUB, and the headers and the small library of CUDA's runtime; the
# hashes are of x86-64 and of 64-bit Arm. What a compiler of 13.0 makes runs with the libraries of every CUDA 13.
_COMPILER = """
nvidia-cuda-nvcc==13.0.88 \
    --hash=sha256:56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03 \
    --hash=sha256:c7ff28f86a24effdc6c034fa15230c549a273e4771b10a7fec14996f8cf3307f
nvidia-nvvm==13.0.88 \
    --hash=sha256:c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0 \
    --hash=sha256:c4376a291d72d22a315d9d2f69bdae8f8cd83a627f75bad395cee49a0fe65dc1
nvidia-cuda-crt==13.0.88 \
    --hash=sha256:2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4 \
    --hash=sha256:ee2ea2a97073e02ee62bb27841f437332be2c248e3eac013df07997ada39c003
nvidia-cuda-cccl==13.0.85 \
    --hash=sha256:e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649 \
    --hash=sha256:6f0203e29fed809ee2b7fe9b1344df66ecab990c37d6a2e0e189b26d6c97ed7c
nvidia-cuda-runtime==13.0.96 \
    --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548 \
    --hash=sha256:ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55
"""
_CUDA = "nvidia/cu13"  # the folder that NVIDIA's packages share
_SYSTEM = Path("/usr/local/cuda/bin")
_PROJECT = """cmake_minimum_required(VERSION 3.18)
project(hubbot-cuda C CXX)
add_subdirectory({ggml} ggml)
"""
# Without what a single card has no use for. Attention over a cache of quantized keys is nothing that hubbot asks for.
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU=OFF -DGGML_CUDA=ON "
    "-DGGML_CUDA_NO_VMM=ON -DGGML_CUDA_NCCL=OFF -DGGML_CUDA_FA_QUANTS=f16-f16 "
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON"
).split()
# A copy of libstdc++ that a compiler links in stays each library's own: see `hubbot.setup`.
_HIDDEN = tuple(f"-DCMAKE_{kind}_LINKER_FLAGS=-Wl,--exclude-libs,libstdc++.a" for kind in ("SHARED", "MODULE"))
_LOAD = "import ctypes, sys; [ctypes.CDLL(path, ctypes.RTLD_GLOBAL) for path in sys.argv[1:]]"
_LIBRARY = "libggml-cuda.so"
_BUILT_FOR = "capabilities"  # the file that lists them
_OF_A_COMPILER = 2 << 30  # bytes of memory


def build(place: Path, capabilities: Iterable[Capability], *, say: Callable[[str], None] = print) -> None:
    """Make `place`/cuda hold a backend for cards of these capabilities. Nothing is done where it does.

    place: a finished llama.cpp. What it was built for before stays in. Raises ToolMissing where a tool lacks or a step
    fails.
    """
    made = place / "cuda"
    wanted = sorted(set(capabilities))
    if set(wanted) <= set(_built_for(made)):
        return
    with alone(made):
        wanted = sorted({*wanted, *_built_for(made)})
        part = place / "cuda.partial"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        say(
            f"setup: building llama.cpp for cards of compute capability {', '.join(map(_spelled, wanted))} once, in {made} "
            "(40 minutes of one core for each; without it GGUF files are read on the CPU)"
        )
        library = _compile(place, part, wanted, tools())
        kept = part / "kept"
        kept.mkdir()
        shutil.move(library, kept / _LIBRARY)
        (kept / _BUILT_FOR).write_text("".join(f"{_spelled(one)}\n" for one in wanted), encoding="ascii")
        shutil.rmtree(made, ignore_errors=True)
        kept.rename(made)
        shutil.rmtree(part)


def _built_for(made: Path) -> list[Capability]:
    if not (made / _LIBRARY).is_file():
        return []
    return [_read(word) for word in (made / _BUILT_FOR).read_text(encoding="ascii").split()]


def _spelled(capability: Capability) -> str:
    return "{}.{}".format(*capability)


def _read(word: str) -> Capability:
    major, _, minor = word.partition(".")
    return int(major), int(minor)


def _compile(place: Path, part: Path, capabilities: Sequence[Capability], path: str) -> Path:
    """The backend's library, in `part`."""
    ggml = place / "source" / "ggml"
    if not (ggml / "src" / "ggml-cuda").is_dir():
        msg = f"{ggml} has no source of llama.cpp's CUDA backend. Remove {place} and run `hubbot setup` again."
        raise ToolMissing(msg)
    compiler = _of_the_machine(path) or _fetch(part, path)
    (part / "CMakeLists.txt").write_text(_PROJECT.format(ggml=ggml.absolute()), encoding="utf-8")
    libraries = _libraries_of_torch() if compiler.is_relative_to(part) else compiler.parents[1] / "lib64"
    architectures = ";".join("{}{}-real".format(*one) for one in capabilities)
    where = [f"-DCMAKE_CUDA_COMPILER={compiler}", f"-DCUDAToolkit_ROOT={compiler.parents[1]}"]
    where += [f"-DCMAKE_CUDA_ARCHITECTURES={architectures}", f"-DCMAKE_INSTALL_RPATH={libraries}"]
    made = part / "build"
    configure = ["cmake", "-S", str(part), "-B", str(made), "-G", "Ninja", *_OPTIONS, *_HIDDEN, *where]
    for command in (configure, ["cmake", "--build", str(made), "--target", "ggml-cuda", "--parallel", str(_at_once())]):
        if not run(command, part / "log", path):
            msg = f"llama.cpp's CUDA backend did not build: {end_of(part / 'log')}\n{part / 'log'} has the whole story."
            raise ToolMissing(msg)
    library = next(made.rglob(_LIBRARY))
    command = [sys.executable, "-c", _LOAD, str(place / "build" / "bin" / "libggml-base.so"), str(library)]
    if not run(command, part / "log", path):
        msg = f"llama.cpp's CUDA backend was built and does not load: {end_of(part / 'log')}"
        raise ToolMissing(msg)
    return library


def _at_once() -> int:
    """Compilers that run side by side: one a core, where memory holds as many."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(os.cpu_count() or 1, memory // _OF_A_COMPILER))


def _of_the_machine(path: str) -> Path | None:
    """Its nvcc, where the toolkit that it belongs to is whole: many have the compiler and no cuBLAS."""
    found = shutil.which("nvcc", path=os.pathsep.join((path, str(_SYSTEM))))
    places = [Path(found), Path(found).resolve()] if found else []
    return next((nvcc for nvcc in places if (nvcc.parents[1] / "include" / "cublas_v2.h").is_file()), None)


def _fetch(part: Path, path: str) -> Path:
    """NVIDIA's compiler as packages, with the libraries that torch brought -> the path of nvcc."""
    libraries = _libraries_of_torch()
    if libraries is None:
        msg = "torch is here without CUDA 13's libraries, and there is no nvcc with cuBLAS on the PATH or in /usr/local/cuda: install torch's CUDA build, or NVIDIA's CUDA toolkit, and run `hubbot setup` again."
        raise ToolMissing(msg)
    listed = part / "compiler.txt"
    listed.write_text(_COMPILER, encoding="ascii")
    command = f"{sys.executable} -m pip install -qq --disable-pip-version-check --no-deps --require-hashes --only-binary=:all:".split()
    command += ["--target", str(part / "compiler"), "--requirement", str(listed)]
    if not run(command, part / "log", path):
        msg = f"pip could not fetch NVIDIA's compiler, and there is no nvcc with cuBLAS on the PATH or in /usr/local/cuda: {end_of(part / 'log')}\nLook at pip's settings and the network, or install NVIDIA's CUDA toolkit, and run `hubbot setup` again."
        raise ToolMissing(msg)
    root = part / "compiler" / _CUDA
    for header in (libraries.parent / "include").glob("cublas*.h"):
        (root / "include" / header.name).symlink_to(header)
    for name in ("cudart", "cublas", "cublasLt"):  # linkers know a library by its name without a version
        (root / "lib" / f"lib{name}.so").symlink_to(next(libraries.glob(f"lib{name}.so.*")))
    (root / "lib64").symlink_to("lib")  # where nvcc looks
    return root / "bin" / "nvcc"


def _libraries_of_torch() -> Path | None:
    """The folder of CUDA's libraries that pip installed for torch."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec else []
    roots.append(str(Path(sysconfig.get_path("purelib")) / "nvidia"))
    folders = (Path(root).parent / _CUDA / "lib" for root in roots)
    return next((folder for folder in folders if any(folder.glob("libcublas.so.*"))), None)


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]), map(_read, sys.argv[2:]))
    except ToolMissing as problem:
        sys.stderr.write(f"{problem}\n")
        sys.exit(problem.exit_code)
