"""Where a variant is read back, and what a benchmark that fails costs."""

from pathlib import Path

import pytest
import torch

from hubbot.child import check as checks
from hubbot.errors import ToolMissing
from hubbot.formats import FAMILIES
from tests.records import record


def test_a_variant_that_the_gpu_cannot_hold_is_read_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x" * 1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2000, 4000))
    assert checks._device_for([file], "cuda:0") == "cuda:0"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1200, 4000))
    assert checks._device_for([file], "cuda:0") == "cpu"
    assert checks._device_for([file], "cpu") == "cpu"


def test_a_benchmark_that_fails_is_a_note_and_asks_for_no_more_than_the_context(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def broken(paths, *, prompt_tokens, generated_tokens, device):
        asked.append(prompt_tokens + generated_tokens)
        raise ToolMissing("the runtime fell over. Load it by hand.")

    variant = record().variants[0]
    monkeypatch.setattr(FAMILIES[variant.family], "measure_speed", broken)
    for context in (None, 128):
        timed = checks._timed(variant, [], "cpu", context)
        assert timed.speed == variant.speed
        assert timed.notes == (*variant.notes, "speed was not measured: the runtime fell over. Load it by hand.")
    assert asked[0] == 512 + 64
    assert asked[1] < 128
