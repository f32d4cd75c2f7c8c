"""llama.cpp's part for cards is built beside what is there, for the cards that are there."""

import subprocess
from pathlib import Path

import pytest

from hubbot import setup_cuda
from hubbot.errors import ToolMissing

CMAKE = """#!/bin/sh
echo "cmake $*" >>{calls}
[ -e {broken} ] && echo 'unsupported compiler' && exit 1
if [ "$1" = --build ]; then mkdir -p "$2/bin" && cp {library} "$2/bin/libggml-cuda.so"; fi
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama.cpp with the source of its backend, a whole toolkit on the PATH, and a cmake that notes how it is called."""
    programs = tmp_path / "toolkit" / "bin"
    (tmp_path / "toolkit" / "include").mkdir(parents=True)
    (tmp_path / "toolkit" / "include" / "cublas_v2.h").touch()
    programs.mkdir()
    for name in ("cmake", "nvcc"):
        places = {name: tmp_path / name for name in ("calls", "broken", "library")}
        (programs / name).write_text(CMAKE.format(**places))
        (programs / name).chmod(0o755)
    (tmp_path / "llama.cpp" / "source" / "ggml" / "src" / "ggml-cuda").mkdir(parents=True)
    libraries = tmp_path / "llama.cpp" / "build" / "bin"
    libraries.mkdir(parents=True)
    for library in (tmp_path / "library", libraries / "libggml-base.so"):
        subprocess.run(["cc", "-shared", "-x", "c", "/dev/null", "-o", str(library)], check=True)
    monkeypatch.setattr(setup_cuda, "tools", lambda: f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(setup_cuda, "_SYSTEM", tmp_path)
    return tmp_path


def test_it_is_built_once_for_the_cards_that_are_there(machine: Path):
    said: list[str] = []
    for _ in range(2):
        setup_cuda.build(machine / "llama.cpp", [(9, 0), (9, 0)], say=said.append)
    calls = (machine / "calls").read_text()
    assert calls.count("--build") == len(said) == 1
    assert "-DCMAKE_CUDA_ARCHITECTURES=90-real " in calls
    assert f"-DCMAKE_CUDA_COMPILER={machine}/toolkit/bin/nvcc" in calls
    made = sorted(path.name for path in (machine / "llama.cpp" / "cuda").iterdir())
    assert made == ["capabilities", "libggml-cuda.so"]
    assert not (machine / "llama.cpp" / "cuda.partial").exists()


def test_another_card_is_added_to_those_that_it_was_built_for(machine: Path):
    for cards in ([(9, 0)], [(8, 6)], [(9, 0)], []):
        setup_cuda.build(machine / "llama.cpp", cards, say=lambda _: None)
    calls = (machine / "calls").read_text()
    assert calls.count("--build") == 2
    assert "-DCMAKE_CUDA_ARCHITECTURES=86-real;90-real " in calls


def test_a_machine_without_cards_is_asked_for_nothing(tmp_path: Path):
    setup_cuda.build(tmp_path, [], say=lambda _: pytest.fail("nothing is to be said"))
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_fails_is_told_with_its_end_and_leaves_what_was_there(machine: Path):
    place = machine / "llama.cpp"
    setup_cuda.build(place, [(9, 0)], say=lambda _: None)
    (machine / "broken").touch()
    with pytest.raises(ToolMissing, match=r"unsupported compiler(.|\n)*partial/log"):
        setup_cuda.build(place, [(8, 0)], say=lambda _: None)
    assert (place / "cuda" / "libggml-cuda.so").is_file()
    assert setup_cuda._built_for(place / "cuda") == [(9, 0)]


def test_a_library_that_does_not_load_is_not_kept(machine: Path):
    (machine / "library").write_text("made by a compiler that forgot something")
    with pytest.raises(ToolMissing, match=r"does not load(.|\n)*invalid ELF header|file too short"):
        setup_cuda.build(machine / "llama.cpp", [(9, 0)], say=lambda _: None)
    assert not (machine / "llama.cpp" / "cuda").exists()


def test_a_compiler_without_cublas_is_passed_over(machine: Path, monkeypatch: pytest.MonkeyPatch):
    """As many machines have it; NVIDIA's packages need the libraries that torch brings, which a CPU build does not."""
    (machine / "toolkit" / "include" / "cublas_v2.h").unlink()
    monkeypatch.setattr(setup_cuda, "_libraries_of_torch", lambda: None)
    with pytest.raises(ToolMissing, match=r"no nvcc with cuBLAS.*torch's CUDA build"):
        setup_cuda.build(machine / "llama.cpp", [(9, 0)], say=lambda _: None)


def test_the_compiler_is_pinned_by_hash():
    entries = [entry for entry in setup_cuda._COMPILER.split("\nnvidia") if entry.strip()]
    assert len(entries) == 5
    assert all(entry.count("--hash=sha256:") == 2 and "==13.0." in entry for entry in entries)
