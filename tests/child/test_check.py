"""Where a variant is read back, and what a benchmark that fails costs."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from hubbot.child import check as checks
from hubbot.child.messages import Checked, CheckQuestion
from hubbot.child.trials import gptq_last
from hubbot.domain import Family, LoadCheck
from hubbot.errors import ToolMissing
from hubbot.formats import FAMILIES
from hubbot.settings import load_settings
from tests.records import record


def test_a_variant_that_the_gpu_cannot_hold_is_read_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x" * 1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2000, 4000))
    assert checks._device_for([file], "cuda:0") == "cuda:0"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1200, 4000))
    assert checks._device_for([file], "cuda:0") == "cpu"
    assert checks._device_for([file], "cpu") == "cpu"


def test_codes_that_are_decoded_on_loading_need_the_memory_of_16_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x" * 1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4000, 8000))
    one = replace(record().variants[0], bits_per_weight=4.0)
    grown = {family: checks._grown(replace(one, family=family)) for family in (Family.GPTQ, Family.PACKED)}
    assert checks._device_for([file], "cuda:0", grown=grown[Family.GPTQ]) == "cuda:0"
    assert checks._device_for([file], "cuda:0", grown=grown[Family.PACKED]) == "cpu"


def test_a_benchmark_that_fails_is_a_note_and_asks_for_no_more_than_the_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def broken(paths, *, prompt_tokens, generated_tokens, device):
        asked.append(prompt_tokens + generated_tokens)
        raise ToolMissing("the runtime fell over. Load it by hand.")

    made = record()
    variant = replace(made.variants[0], load_check=LoadCheck(runtime="any 1.0", loaded=True))
    monkeypatch.setattr(FAMILIES[variant.family], "measure_speed", broken)
    read = Checked(load_check=variant.load_check, samples=(), speed=None, notes=("said before",))
    for context in (None, 128):
        source = replace(made.source, context_length=context)
        settings = load_settings(None, {"benchmark": True})
        question = CheckQuestion(
            source=source, settings=settings, work=tmp_path, out=tmp_path, variants=(), references={}
        )
        timed = checks._with_speed(variant, read, question, "cpu")
        assert timed.speed is None
        assert timed.notes == ("said before", "speed was not measured: the runtime fell over. Load it by hand.")
    assert asked[0] == 512 + 64
    assert asked[1] < 128


def test_folders_that_gptqmodel_reads_come_last_for_it_changes_the_classes_that_others_are_read_with():
    one = record().variants[0]
    families = (Family.GPTQ, Family.PACKED, Family.GPTQ, Family.BNB)
    order = gptq_last([replace(one, name=f"{at}", family=family) for at, family in enumerate(families)])
    assert [each.name for each in order] == ["1", "3", "0", "2"]


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ({"cuda:0": 80, "cuda:1": 80}, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        ({"cuda:0": 30, "cuda:1": 80}, ["cuda:1"] * 4),  # the folders need what the first one has
        ({"cuda:0": 39, "cuda:1": 30}, ["cuda:0", "cuda:1", "cuda:1"]),
        ({"cuda:0": 30}, ["cpu"] * 4),
    ],
)
def test_files_take_turns_on_cards_with_room_beside_the_folders(
    free: dict[str, int], expected: list[str], monkeypatch: pytest.MonkeyPatch
):
    gib = 2**30
    monkeypatch.setattr(checks, "cores", lambda: 16)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * gib))
    monkeypatch.setattr(checks, "room_on", lambda device: free[str(device)] * gib)
    files = [record().variants[0]] * 12
    assert checks._slots(files, list(free), taken=24 * gib, largest=12 * gib) == expected
    assert checks._slots(files, ["cpu"], taken=24 * gib, largest=2**20) == ["cpu"] * 4
