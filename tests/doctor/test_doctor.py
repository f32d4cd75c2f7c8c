"""What `hubbot doctor` finds amiss, and that it says how to mend it."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from hubbot import llamacpp
from hubbot.confine.walls import Walls
from hubbot.doctor import examine as doctor
from hubbot.doctor.finding import Status
from hubbot.doctor.runtimes import runtimes_here
from hubbot.errors import ToolMissing
from hubbot.formats.gguf import compiled
from hubbot.machine import Machine

GIB = 2**30
PLAIN = Machine(cpu="a cpu", cores=2, ram=32 * GIB, ram_free=30 * GIB, disk_free=100 * GIB)
WITH_GPU = replace(PLAIN, gpu="NVIDIA A10", vram=24 * GIB, vram_free=23 * GIB, driver="550.54")


def test_an_old_python_fails_and_a_new_one_passes():
    assert doctor._python((3, 10, 14)).status is Status.FAIL
    assert doctor._python((3, 13, 0)).status is Status.OK


def test_a_cpu_build_of_torch_beside_a_gpu_is_told():
    finding = doctor._torch(WITH_GPU, lambda _code: "2.13.0+cpu None False")
    assert finding.status is Status.WARN
    assert "NVIDIA A10" in finding.found
    assert "CUDA build" in finding.remedy


def test_a_driver_too_old_for_torchs_cuda_is_told():
    finding = doctor._torch(WITH_GPU, lambda _code: "2.13.0 13.0 False")
    assert finding.status is Status.WARN
    assert "CUDA 13.0" in finding.found
    assert "550.54" in finding.found


def test_torch_with_its_gpu_and_torch_without_any_are_both_well():
    assert doctor._torch(WITH_GPU, lambda _code: "2.13.0 13.0 True").status is Status.OK
    assert doctor._torch(PLAIN, lambda _code: "2.13.0+cpu None False").status is Status.OK


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ((54e9, 55e9, 4.2e14, 5.4e14), []),
        ((54e9, 2e9, 4.2e14, 5.4e14), ["Copies are slow"]),
        ((54e9, 55e9, 0.6e14, 5.4e14), ["Products are slow"]),
        ((54e9, 55e9, 0.6e14, None), []),  # of a card whose speed is not known here
    ],
)
def test_a_card_that_copies_or_multiplies_far_below_its_kind_is_told(rates: tuple[float | None, ...], told: list[str]):
    names = ("to_card", "from_card", "product", "peak")
    answer = json.dumps(dict(zip(names, rates, strict=True)))
    finding = next(doctor._rates(WITH_GPU, "auto", lambda _: answer))
    assert finding.status is (Status.WARN if told else Status.OK)
    assert all(sentence in finding.remedy for sentence in told)
    assert "54 GB/s" in finding.found


def test_a_package_that_is_installed_but_does_not_load_fails_with_its_own_last_line():
    broken = doctor._Import(package="pytest", code="raise ImportError('libcudart.so.13: cannot open')", serves="x")
    finding = doctor._imported(broken, doctor._ask)
    assert finding.status is Status.FAIL
    assert "libcudart.so.13" in finding.found


def test_a_package_that_crashes_the_interpreter_is_a_finding_and_no_crash():
    crashing = doctor._Import(package="pytest", code="import os; os.abort()", serves="x")
    assert doctor._imported(crashing, doctor._ask).status is Status.FAIL


def test_a_missing_package_and_another_version_than_the_tested_are_told():
    absent = doctor._Import(package="no-such-package", code="pass", serves="is for this test")
    assert doctor._imported(absent, doctor._ask).found == "not installed; it is for this test"
    other = doctor._Import(package="pytest", code="pass", serves="x")
    finding = doctor._imported(other, doctor._ask, {"pytest": "0.1"})
    assert (finding.status, finding.found.endswith("tested with 0.1")) == (Status.WARN, True)


def test_the_child_that_imports_does_not_inherit_a_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_secret")
    assert doctor._ask("import os; print('hf_secret' in str(os.environ))") == "False"


def test_a_missing_llama_cpp_fails_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch):
    def nowhere() -> None:
        raise ToolMissing("No built llama.cpp was found. Run `hubbot setup`")

    monkeypatch.setattr(llamacpp, "find", nowhere)
    finding = doctor._llama_cpp()
    assert finding.status is Status.FAIL
    assert "hubbot setup" in finding.remedy


def test_a_llama_cpp_that_was_set_up_before_a_library_was_there_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(compiled, "source", lambda name: tmp_path / name)
    for name in ("encoders", "descent"):
        (tmp_path / name).write_text("another text")
    finding = doctor._llama_cpp()
    assert finding.status is Status.WARN
    assert "encoders and descent" in finding.found
    assert "hubbot setup" in finding.remedy


@pytest.mark.parametrize(
    ("answer", "built", "status", "said"),
    [
        ("True", True, Status.OK, "computes there"),
        ("False", False, Status.WARN, "not built for cards: GGUF files are read on the CPU"),
        ("False", True, Status.WARN, "libggml-cuda.so does not see"),
    ],
)
def test_whether_gguf_files_are_read_on_the_card_is_told(
    answer: str, built: bool, status: Status, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    backend = tmp_path / "cuda" / "libggml-cuda.so"
    monkeypatch.setattr(llamacpp, "cuda_backend", lambda: backend if built else None)
    assert list(doctor._llama_cpp_on_cards(PLAIN, lambda _: answer)) == []
    [finding] = doctor._llama_cpp_on_cards(WITH_GPU, lambda _: answer)
    assert finding.status is status
    assert said in finding.found
    assert ("hubbot setup" in (finding.remedy or "")) is (status is Status.WARN)


def test_a_container_without_a_gpu_is_shown_the_road(tmp_path: Path):
    (tmp_path / ".dockerenv").touch()
    [finding] = doctor._gpu_road(PLAIN, tmp_path, {})
    assert "--gpus all" in finding.remedy
    assert list(doctor._gpu_road(WITH_GPU, tmp_path, {})) == []


@pytest.mark.parametrize(
    ("text", "status"),
    [('{"default-runtime": "nvidia"}', Status.OK), ("{}", Status.WARN), ("not json", Status.WARN), ("[]", Status.WARN)],
)
def test_dockers_default_runtime_decides_whether_an_action_sees_the_gpu(tmp_path: Path, text: str, status: Status):
    path = tmp_path / "daemon.json"
    path.write_text(text)
    assert doctor._docker_runtime(path).status is status


def test_little_disk_and_little_memory_are_warned_of():
    assert doctor._disk(replace(PLAIN, disk_free=3 * GIB), Path("out")).status is Status.WARN
    assert doctor._ram(replace(PLAIN, ram=4 * GIB)).status is Status.WARN
    assert doctor._disk(PLAIN, Path("out")).status is Status.OK
    assert doctor._ram(PLAIN).status is Status.OK


@pytest.mark.slow
def test_this_machine_can_do_every_family(tmp_path: Path):
    findings = doctor.examine(tmp_path / "out", token=True)
    assert [finding for finding in findings if finding.status is Status.FAIL] == []
    assert {"Python", "torch", "llama.cpp", "bitsandbytes", "gptqmodel"} <= {finding.name for finding in findings}


def test_a_kernel_that_builds_no_walls_is_told_and_one_that_does_is_well():
    whole = Walls(files="landlock 6", network="seccomp + landlock 6", rights="files only")
    assert doctor._walls(lambda: whole).status is Status.OK
    for missing in ("files", "network"):
        finding = doctor._walls(partial(replace, whole, **{missing: "none"}))
        assert finding.status is Status.WARN
        assert "docs/security.md" in finding.remedy


def test_the_walls_are_those_that_a_confined_process_really_gets():
    assert doctor._built().network != ""


def test_the_runtimes_of_this_machine_are_held_against_the_releases_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "ollama"
    program.write_text("#!/bin/sh\necho ollama version is 0.99.1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    [same, rest] = runtimes_here(seen={"ollama": "0.99.1"})
    assert (same.name, same.status, same.found) == ("Ollama", Status.OK, "0.99.1")
    assert "Ollama" not in rest.found
    assert "vLLM" in rest.found
    [other, _] = runtimes_here(seen={"ollama": "0.98.0"})
    assert (other.status, other.found) == (Status.WARN, "0.99.1, the table has 0.98.0")


def test_an_environment_of_vllm_that_has_none_is_told(tmp_path: Path):
    failed = [finding for finding in runtimes_here(tmp_path) if finding.status is Status.FAIL]
    assert [finding.name for finding in failed] == ["vLLM"]
    assert str(tmp_path) in failed[0].found
