"""Measuring the machine and the peak of a run."""

import os
import subprocess
import sys

import pytest

from hubbot.machine import measure_machine
from hubbot.machine.nvidia import no_other
from hubbot.machine.peak import PeakMeter, disk_used
from hubbot.model.architectures import known_to_llama_cpp, known_to_transformers, other_purpose, sees_images

MB = 2**20


def test_the_machine_is_measured_where_the_work_folder_will_be(tmp_path):
    found = measure_machine(tmp_path / "not" / "there" / "yet", "cpu")
    assert 0 < found.cores <= os.cpu_count()
    assert 0 < found.ram_free <= found.ram
    assert found.disk_free > 0
    assert found.hardware["cpu"]
    assert found.hardware["gpu"] is None


def test_what_an_earlier_run_left_counts_as_free_for_the_next(tmp_path):
    (tmp_path / "partial").write_bytes(os.urandom(40 * MB))
    alone, resumed = measure_machine(tmp_path, "cpu"), measure_machine(tmp_path, "cpu", ours=tmp_path)
    assert resumed.disk_free - alone.disk_free > 10 * MB  # others write to this disk meanwhile


def test_the_peak_counts_children_too(tmp_path):
    code = "x = bytearray(200 * 2**20); print(1, flush=True); input()"
    with PeakMeter(tmp_path) as meter:
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        meter._sample(disk=False)
        child.communicate(b"\n")
    alone = PeakMeter(tmp_path)
    alone._sample(disk=False)
    assert meter.peak.rss > alone.peak.rss + 150 * MB


def test_disk_is_what_files_occupy(tmp_path):
    (tmp_path / "full").write_bytes(os.urandom(3 * MB))
    (tmp_path / "twin").hardlink_to(tmp_path / "full")
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(500 * MB)
    (tmp_path / "out").symlink_to("/usr")
    assert 3 * MB <= disk_used(tmp_path) < 4 * MB


@pytest.mark.slow
def test_the_table_of_architectures_is_the_one_that_transformers_uses():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = {
        name
        for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        for name in ([value] if isinstance(value, str) else value)
    }
    assert len(names) > 100
    drafting = {name for name in names if "draft" in (other_purpose(name) or "")}
    assert drafting == {"Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM"}
    assert [name for name in names - drafting if not known_to_transformers(name)] == []
    assert not known_to_transformers("BertForMaskedLM")
    assert all(map(known_to_transformers, ["MPTForCausalLM", "PhiMoEForCausalLM"]))  # the Hub's capitals


def test_a_class_of_images_and_text_is_known_whatever_its_capitals():
    assert all(map(sees_images, ["Gemma3ForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"]))
    assert all(map(known_to_transformers, ["Gemma3ForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"]))
    assert not sees_images("Gemma3ForCausalLM")


def test_the_dense_families_are_known_to_both():
    for family in "Llama Mistral Qwen2 Qwen3 Gemma2 Gemma3 Phi3 GPTNeoX Olmo2 Granite SmolLM3 Cohere2".split():
        assert known_to_transformers(f"{family}ForCausalLM"), family
        assert known_to_llama_cpp(f"{family}ForCausalLM"), family
    assert not known_to_llama_cpp("NobodyKnowsThisForCausalLM")


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cuda:2", None, "2"),
        ("cuda", None, "0"),
        ("cuda:1", "3, GPU-5d1", "GPU-5d1"),  # as the driver calls it, and counted from the first that is visible
        ("cuda:2", "3,5", ""),
        ("cpu", "3,5", ""),
    ],
)
def test_a_process_sees_one_card_and_no_other(device: str, visible: str | None, expected: str):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert no_other(device, environ) == {"CUDA_VISIBLE_DEVICES": expected}
