"""The files that set-up installs from agree with each other."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest

from hubbot import llamacpp, setup
from hubbot.errors import ToolMissing

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def pins(lines: list[str]) -> set[str]:
    return {line for line in lines if re.match(r"[a-z].*==", line)}


def named(requirement: str) -> str:
    return re.split(r"[=\[ ]", requirement)[0].lower()


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LISTED = (ROOT / "requirements.in").read_text().splitlines()
LOCKED = {line.split(" ")[0] for line in LOCK.splitlines() if "==" in line}


def test_the_lock_is_made_from_the_pins_that_the_package_declares():
    extras = [line for name, lines in PROJECT["optional-dependencies"].items() if name != "ray" for line in lines]
    torch = f"torch=={re.search(r'TORCH := (.*)', MAKEFILE)[1]}"
    assert pins([*PROJECT["dependencies"], *extras]) - pins(LISTED) == {torch}
    assert pins(LISTED) <= LOCKED
    assert {named(line) for line in extras} - {named(line) for line in LOCKED} == {"pip"}  # which the Makefile pins


def test_the_extra_of_the_gptq_reader_names_all_that_it_imports_but_what_the_lock_leaves_out():
    declared = {named(re.split(r"[>;]", line)[0]) for line in requires("gptqmodel") if "extra ==" not in line}
    left_out = {line.split(";")[0] for line in (ROOT / "requirements.overrides").read_text().splitlines()}
    given = {named(line) for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["gptq"]]}
    brought = {named(line) for line in LOCKED if line.startswith(("dill", "filelock", "packaging", "pyarrow"))}
    assert declared - left_out - given - brought == {
        "ninja"
    }  # it builds kernels for GPUs, which the check calls none of


def test_every_locked_package_has_a_hash_and_none_names_where_to_get_it():
    entries = re.split(r"\n(?=[a-z])", LOCK.split("\n", 2)[2])
    assert len(entries) > 80
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert not re.search(r"https?://|--index|--find-links|file:", LOCK)


def test_the_lock_leaves_torchs_builds_to_pip():
    names = {re.split(r"[= ]", line)[0] for line in LOCK.splitlines() if "==" in line}
    assert not {name for name in names if name in ("torch", "triton") or name.startswith("nvidia")}


def test_what_is_missing_is_said_in_one_sentence_before_anything_is_installed(tmp_path: Path):
    command = ["make", "tools", "PYTHON=/no/such/python"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert "apt-get install -y python3" in answer.stdout
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\n[ $1 = -V ] && echo Python 3.9.2 && exit 0\nexit 1\n")
    old.chmod(0o755)
    command = ["make", "tools", f"PYTHON={old}"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Python 3.9.2" in answer.stdout
    assert "3.11 or newer" in answer.stdout


def test_a_missing_compiler_is_named_with_its_package(tmp_path: Path):
    for tool in ("bash", "grep", "sed", "cat", "sha256sum", "cut"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    # the interpreter itself: what `python3` finds may be a script that looks for others on the PATH
    (tmp_path / "python3").symlink_to(Path(sys.executable).resolve())
    command = ["make", "tools", f"PATH={tmp_path}"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "apt-get install -y gcc g++" in answer.stdout, answer


# --- llama.cpp ---------------------------------------------------------------------------------------------

TREE = f"llama_cpp_python-{llamacpp.PIN}"
CMAKE = """#!/bin/sh
echo "cmake $*" >>{calls}
if [ "$1" = --build ]; then [ -e {broken} ] && echo 'no space left' && exit 1
mkdir -p "$2/bin" && touch "$2/bin/llama-bench" "$2/bin/libmtmd.so" "$2/some.o"; fi
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source release of a few files, already fetched, and a cmake that only notes how it is called."""
    programs, part = tmp_path / "programs", tmp_path / "llama.cpp.partial"
    programs.mkdir()
    part.mkdir()
    cmake = programs / "cmake"
    cmake.write_text(CMAKE.format(calls=tmp_path / "calls", broken=tmp_path / "broken"))
    cmake.chmod(0o755)
    release = part / f"{TREE}.tar.gz"
    (tmp_path / "file").write_text("x")
    with tarfile.open(release, "w:gz") as archive:
        for name in (
            "llama_cpp/__init__.py", "vendor/llama.cpp/conversion/base.py", "vendor/llama.cpp/vendor/stb/stb.h",
            "vendor/llama.cpp/docs/a.md", "vendor/llama.cpp/models/ggml-vocab-gpt-2.gguf",
            "vendor/llama.cpp/models/ggml-vocab-bert.gguf", ".git/modules/vendor/llama.cpp/objects/pack", "setup.cfg",
        ):  # fmt: skip
            archive.add(tmp_path / "file", f"{TREE}/{name}")
    monkeypatch.setattr(setup, "SHA256", setup._sha256(release))
    monkeypatch.setattr(setup, "tools", lambda: f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    return tmp_path


def test_setup_keeps_the_tree_and_the_bindings_and_neither_git_packs_nor_objects(machine: Path):
    place = machine / "llama.cpp"
    setup.build(place, ["-DGGML_CUDA=ON"])
    kept = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert kept == {
        "bindings/llama_cpp/__init__.py", "build/bin/libmtmd.so", "build/bin/llama-bench", "log", "source/conversion/base.py",
        "source/models/ggml-vocab-gpt-2.gguf", "source/vendor/stb/stb.h",
    }  # fmt: skip
    calls = (machine / "calls").read_text()
    assert "-DGGML_CUDA=ON" in calls
    assert ("--exclude-libs,libstdc++.a" in calls) is (sys.platform == "linux")


def test_setup_leaves_bytecode_of_what_every_plan_imports(machine: Path):
    place = machine / "llama.cpp"
    setup.build(place)
    for file in ("source/conversion/base.py", "bindings/llama_cpp/__init__.py"):
        assert Path(importlib.util.cache_from_source(place / file)).is_file()


def test_a_finished_llama_cpp_is_left_as_it_is(machine: Path):
    said: list[str] = []
    setup.build(machine / "llama.cpp", say=said.append)
    setup.build(machine / "llama.cpp", say=said.append)
    assert len(said) == 1
    assert (machine / "calls").read_text().count("--build") == 1


def test_a_build_without_what_is_wanted_since_is_made_again(machine: Path):
    place = machine / "llama.cpp"
    release = (machine / "llama.cpp.partial" / f"{TREE}.tar.gz").read_bytes()
    setup.build(place)
    (place / "build" / "bin" / "libmtmd.so").unlink()
    (place / f"{TREE}.tar.gz").write_bytes(release)
    assert not setup.finished(place)
    setup.build(place)
    assert setup.finished(place)
    assert (machine / "calls").read_text().count("--build") == 2


def test_a_build_that_failed_is_told_with_its_end_and_goes_on(machine: Path):
    place = machine / "llama.cpp"
    (machine / "broken").touch()
    with pytest.raises(ToolMissing, match=r"no space left(.|\n)*partial/log.*`hubbot setup` goes on"):
        setup.build(place)
    assert not place.exists()
    (machine / "broken").unlink()
    setup.build(place)
    assert setup.finished(place)


def test_a_folder_with_other_files_is_refused_and_left_alone(machine: Path):
    place = machine / "llama.cpp"
    place.mkdir()
    (place / "thesis.txt").write_text("mine")
    with pytest.raises(ToolMissing, match=r"no finished llama\.cpp"):
        setup.build(place)
    assert (place / "thesis.txt").read_text() == "mine"
    assert not (machine / "llama.cpp.lock").exists()


def test_another_file_than_the_pinned_release_is_not_built(machine: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(setup, "SHA256", "0" * 64)
    wheels = machine / "wheels"
    wheels.mkdir()
    (machine / "llama.cpp.partial" / f"{TREE}.tar.gz").rename(wheels / f"{TREE}.tar.gz")
    for name, value in {"CONFIG_FILE": "/dev/null", "NO_INDEX": "1", "FIND_LINKS": str(wheels)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(ToolMissing, match=r"could not fetch(.|\n)*HASHES(.|\n)*hubbot setup"):
        setup.build(machine / "llama.cpp")
    assert not (machine / "calls").exists()


def test_what_building_lacks_is_named_at_once_with_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    with pytest.raises(ToolMissing, match=r"needs cmake, ninja, cc, c\+\+.*hubbot\[gguf\].*gcc g\+\+"):
        setup.build(tmp_path / "llama.cpp")


@pytest.mark.parametrize(
    ("stage", "command", "packages", "said"),
    [
        ("llama", ["hubbot.setup", "{place}"], "", "no finished llama.cpp"),
        (
            "cuda",
            ["hubbot.setup_cuda", "{place}", "9.0"],
            sysconfig.get_path("purelib"),
            "no source of llama.cpp's CUDA",
        ),
    ],
)
def test_the_image_builds_llama_cpp_with_the_modules_that_its_stages_copy(
    stage: str, command: list[str], packages: str, said: str, tmp_path: Path
):
    text = (ROOT / "Dockerfile").read_text().split(f"AS {stage}\n")[1]
    copied = re.search(r"^COPY (hubbot/.*) hubbot/$", text, re.MULTILINE)[1].split()
    for name in copied:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    program = [sys.executable, "-S", "-P", "-m", *(word.format(place=tmp_path) for word in command)]
    environment = {"PYTHONPATH": os.pathsep.join((str(tmp_path), packages)), "PATH": os.environ["PATH"]}
    answer = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == ToolMissing.exit_code
    assert said in answer.stderr
