"""What is asked for and what can be made: a whole run of models that some variants do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers

from hubbot.cards.memory import memory_needed
from hubbot.domain import Record, Status
from hubbot.record.file import read_record
from tests.jobs import command, unconfined, write_texts
from tests.models import VOCABULARY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def narrow(tiny_model, tmp_path_factory) -> Path:
    """A model 96 wide, which no group of 128 or 64 divides."""
    folder = tmp_path_factory.mktemp("narrow") / "narrow"
    shutil.copytree(tiny_model("llama"), folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def run(model: Path, out: Path, variants: str, *more: str) -> int:
    """The exit code of `hubbot run`."""
    calibration, evaluation = write_texts(out.parent)
    texts = ("--calibration", str(calibration), "--evaluation", str(evaluation))
    sizes = ("--samples", "8", "--length", "64", "--context", "64", "--no-gate")
    return command("run", str(model), "--variants", variants, "--out", str(out), *texts, *sizes, *more, call=unconfined)


def made(out: Path) -> dict[str, tuple[Status, str | None]]:
    record: Record = read_record(out)
    return {variant.name: (variant.status, variant.reason) for variant in record.variants}


def test_a_variant_that_cannot_be_made_is_recorded_with_its_reason_beside_the_others(narrow, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(narrow, out, "Q8_0,gptq-4bit-128g") == 7
    found = made(out)
    assert found["Q8_0"] == (Status.PASSED, None)
    status, reason = found["gptq-4bit-128g"]
    assert status is Status.FAILED
    assert "96 columns, not a multiple of the group size 128" in str(reason)
    assert capsys.readouterr().out.endswith(f"files    {out}/gguf\n")
    assert run(narrow, out, "Q8_0,gptq-4bit-128g") == 7
    assert "already holds these variants" in capsys.readouterr().err


def test_a_preset_makes_what_fits_and_the_same_command_finds_it_done(narrow, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(narrow, out, "small") == 0
    assert list(made(out)) == ["Q4_K_M", "gptq-4bit-32g", "bnb-nf4"]
    capsys.readouterr()
    assert run(narrow, out, "small") == 0
    assert "already holds these variants" in capsys.readouterr().err


def test_a_run_ends_with_every_folder_that_holds_files(narrow, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(narrow, out, "w4a16-32g,bnb-nf4") == 0
    assert capsys.readouterr().out.endswith(f"files    {out}/compressed-tensors, {out}/bnb\n")


def test_strict_makes_nothing_where_one_variant_cannot_be_made(narrow, tmp_path):
    out = tmp_path / "out"
    assert run(narrow, out, "Q8_0,gptq-4bit-128g", "--strict") == 4
    assert not (out / "hubbot.json").exists()


def test_a_memory_to_fit_makes_the_best_type_that_does_and_a_smaller_one_another(narrow, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(narrow, out, "fit-8GB") == 0
    assert list(made(out)) == ["Q8_0"]
    assert "note: Q8_0 is the best type that fits 8.00 GB" in capsys.readouterr().err
    assert run(narrow, out, "fit-8GB") == 0
    assert "already holds these variants" in capsys.readouterr().err
    record = read_record(out)
    need = memory_needed(record.variants[0], record.source)
    smaller = f"fit-{(need - 2_000) / 1e6:.3f}MB"
    assert command("plan", str(narrow), "--variants", smaller, "--out", str(out), call=unconfined) == 0
    assert "note: Q5_K_M is the best" in capsys.readouterr().out, "96 columns hold no blocks of Q6_K"
    assert run(narrow, out, "fit-400MB") == 4
    assert "Nothing fits 400.0 MB" in capsys.readouterr().err
