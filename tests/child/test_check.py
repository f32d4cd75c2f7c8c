"""Where a variant is read back, and what a benchmark that fails costs."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from hubbot.child import check as checks
from hubbot.child.messages import Checked, CheckQuestion
from hubbot.child.trials import gptq_last
from hubbot.domain import Family, File, LoadCheck
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


GIB = 2**30


@pytest.mark.parametrize(
    ("free", "speaking", "expected", "spoke"),
    [
        ({"cuda:0": 80, "cuda:1": 80}, 24, ["cuda:0", "cuda:1", "cuda:0"], False),  # a task each
        ({"cuda:0": 30, "cuda:1": 80}, 24, ["cuda:0", "cuda:1", "cuda:0"], True),  # before the others
        ({"cuda:0": 39, "cuda:1": 30}, 24, ["cuda:0", "cuda:1", "cuda:1"], False),
        ({"cuda:0": 5}, 1, [], False),
    ],
)
def test_variants_take_turns_on_cards_with_room_beside_the_original(
    free: dict[str, int],
    speaking: int,
    expected: list[str],
    spoke: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(checks, "cores", lambda: 4)
    monkeypatch.setattr(checks, "settle_devices", lambda _: list(free))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * GIB))
    monkeypatch.setattr(checks, "room_on", lambda device: free[str(device)] * GIB)
    monkeypatch.setattr(checks, "_memory", lambda *_: 11 * GIB)
    said: list[bool] = []
    original: Any = SimpleNamespace(speaking=speaking * GIB, speak=lambda: said.append(True))
    assert checks._places(_question(tmp_path), original) == expected
    assert bool(said) == spoke


def test_the_largest_that_fits_a_card_decides_how_many_are_read_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = iter([100 * GIB, 5 * GIB])
    monkeypatch.setattr(checks, "cores", lambda: 16)
    monkeypatch.setattr(checks, "settle_devices", lambda _: ["cuda:0"])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=40 * GIB))
    monkeypatch.setattr(checks, "room_on", lambda _: 80 * GIB)
    monkeypatch.setattr(checks, "_memory", lambda *_: next(sizes))
    silent: Any = SimpleNamespace(speaking=0, speak=None)
    places = checks._places(_question(tmp_path), silent)
    assert (
        places == ["cuda:0"] * 3
    )  # not thirteen: the machine's memory holds so many processes, and there is no more to do


def _question(out: Path) -> CheckQuestion:
    made = record()
    variants = (made.variants[0], replace(made.variants[0], name="gptq-4bit-128g", family=Family.GPTQ))
    return CheckQuestion(
        source=made.source, settings=load_settings(None, {}), work=out, out=out, variants=variants, references={}
    )


def test_folders_come_first_the_largest_of_all_with_its_lines():
    one = record().variants[0]
    sized = [
        replace(one, name=name, family=family, files=(File(path=name, size=size, sha256="0" * 64),))
        for name, family, size in (
            ("Q4", Family.GGUF, 50),
            ("g4", Family.GPTQ, 10),
            ("Q8", Family.GGUF, 90),
            ("b8", Family.BNB, 20),
        )
    ]
    tasks = [(variant.name, lines) for variant, lines in checks._tasks(sized)]
    assert tasks == [("b8", True), ("b8", False), ("g4", True), ("g4", False), ("Q8", False), ("Q4", False)]
