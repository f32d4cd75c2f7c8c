"""Variants whose codes the loss of the whole model chooses: other codes in the same files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from hubbot.child import source
from hubbot.child.messages import SurveyQuestion
from hubbot.child.survey import survey
from hubbot.domain import Gptq, Packed
from hubbot.errors import Unsupported
from hubbot.formats import costs_of, open_formats
from hubbot.formats.gptq import sharing, solver, turns
from hubbot.formats.gptq.format import GptqFormat
from hubbot.formats.names import find_variant, parse_variant, parse_variants
from hubbot.formats.protocol import VariantFiles
from hubbot.model import read_facts
from hubbot.settings import Settings, load_settings
from hubbot.sweep import gradients
from hubbot.sweep.walk import SweepResult
from tests.quantized import encode_all, gptq_format, source_of
from tests.sweeps import run_sweep, windows

PLAIN, WEIGHED = NAMES = ("gptq-4bit-32g", "gptq-4bit-32g-e2e")
Swept = tuple[Path, SweepResult]


def swept(folder: Path, out: Path, form: GptqFormat | None = None) -> SweepResult:
    form = form or gptq_format(folder, [*NAMES], out)
    return run_sweep(folder, out, [form], calibration=windows(1, 6), evaluation=windows(2, 3))


def opened(folder: Path, out: Path, names: Sequence[str]) -> SweepResult:
    """As a job opens them: a format for those that want gradients beside that of the others."""
    formats = open_formats(
        variants=parse_variants(",".join(names)),
        source=source_of(folder),
        facts=read_facts(folder),
        work=out / ".work",
        out=out,
        settings=Settings(),
        calibration=None,
        decoded=True,
        device="cpu",
    )
    out.mkdir(exist_ok=True)
    return run_sweep(folder, out, formats, calibration=windows(1, 6), evaluation=windows(2, 3))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of width 64: the solver goes column by column."""
    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=400,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("narrow")
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"model": {}}')  # token ids are given here
    return folder


@pytest.fixture(scope="module")
def made(narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return narrow, swept(narrow, tmp_path_factory.mktemp("made"))


def _tensors(files: VariantFiles) -> dict[str, torch.Tensor]:
    return {
        name: each for path in files.paths if path.suffix == ".safetensors" for name, each in load_file(path).items()
    }


def test_a_name_says_so_and_nothing_else_changes() -> None:
    assert parse_variant("GPTQ-3bit-128g-asym-E2E") == Gptq(bits=3, group_size=128, symmetric=False, end_to_end=True)
    assert parse_variant("w4a16-64g-e2e") == Packed(layout=Gptq(bits=4, group_size=64, end_to_end=True))
    assert parse_variant("gptq-4bit-32g-actorder-asym-e2e").name == "gptq-4bit-32g-actorder-asym-e2e"
    for wrong in ("gptq-4bit-128g-e2e-asym", "gptq-4bit-e2e-128g", "w8a16-128g-asym-e2e", "gptq-4bit-128ge2e"):
        assert find_variant(wrong) is None


@pytest.mark.slow
def test_files_have_the_plain_ones_format_and_size_and_other_codes(made: Swept) -> None:
    _, result = made
    assert result.failed == {}
    plain, weighed = (result.files[name] for name in NAMES)
    assert [path.name for path in plain.paths] == [path.name for path in weighed.paths]
    assert plain.weight_bytes == weighed.weight_bytes
    configs = [json.loads((files.paths[0].parent / "config.json").read_text()) for files in (plain, weighed)]
    assert configs[0] == configs[1]
    before, after = _tensors(plain), _tensors(weighed)
    assert {name: (each.shape, each.dtype) for name, each in before.items()} == {
        name: (each.shape, each.dtype) for name, each in after.items()
    }
    codes = [name for name in before if name.endswith("qweight")]
    assert codes
    assert not any(torch.equal(before[name], after[name]) for name in codes)
    assert not any("predictions of the whole model" in note for note in plain.notes)
    (note,) = weighed.notes
    assert "predictions of the whole model" in note


@pytest.mark.slow
def test_the_plain_variant_is_the_same_beside_it_and_alone(made: Swept, tmp_path: Path) -> None:
    folder, result = made
    alone = swept(folder, tmp_path, gptq_format(folder, [PLAIN], tmp_path))
    assert not (tmp_path / "gradients").exists()
    before, after = _tensors(alone.files[PLAIN]), _tensors(result.files[PLAIN])
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_variants_of_both_containers_share_their_factors_and_are_the_files_that_they_are_alone(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hessians, gradients = [], []
    prepare, factor = solver.prepare, turns._factor

    def of_inputs(hessian: torch.Tensor, *rest: Any) -> Any:
        hessians.append(len(hessian))
        return prepare(hessian, *rest)

    def of_outputs(matrix: torch.Tensor, *rest: Any) -> Any:
        gradients.append(len(matrix))
        return factor(matrix, *rest)

    monkeypatch.setattr(sharing, "prepare", of_inputs)
    monkeypatch.setattr(turns, "_factor", of_outputs)
    names = [PLAIN, "w4a16-32g-e2e", "gptq-3bit--1g-e2e"]
    both = opened(narrow, tmp_path / "both", names)
    # of each block: query, key and value; output; gate and up; down
    assert sorted(hessians) == [*12 * [64], *4 * [96]]  # ready for groups of 32 and for whole columns
    assert sorted(gradients) == [*4 * [64], *2 * [128], *2 * [192]]
    for name in names:
        alone = _tensors(opened(narrow, tmp_path / name, [name]).files[name])
        assert all(torch.equal(alone[tensor], found) for tensor, found in _tensors(both.files[name]).items())


@pytest.mark.slow
def test_gradients_that_are_not_finite_cost_a_twin_in_another_container_nothing(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_MAX_DAMPING", 0.0)
    found = opened(narrow, tmp_path, [PLAIN, "w4a16-32g-e2e"])
    assert set(found.failed) == {"w4a16-32g-e2e"}
    assert "Leave -e2e out" in found.failed["w4a16-32g-e2e"]
    assert set(found.files) == {PLAIN}


@pytest.mark.slow
def test_a_sweep_that_was_killed_between_blocks_ends_with_the_same_bytes(made: Swept, tmp_path: Path) -> None:
    folder, result = made

    class Killed(GptqFormat):
        def encode(self, part, *rest):
            if part.name == "block-00001":
                raise KeyboardInterrupt
            return super().encode(part, *rest)

    form = gptq_format(folder, [*NAMES], tmp_path)
    form.__class__ = Killed
    with pytest.raises(KeyboardInterrupt):
        swept(folder, tmp_path, form)
    again = swept(folder, tmp_path)
    before, after = _tensors(result.files[WEIGHED]), _tensors(again.files[WEIGHED])
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_layers_without_gradients_are_rounded_plainly_and_counted(narrow: Path, tmp_path: Path) -> None:
    form = gptq_format(narrow, [*NAMES], tmp_path)
    decoded = encode_all(form, narrow)
    assert all(torch.equal(decoded[PLAIN][name], weight) for name, weight in decoded[WEIGHED].items())
    first = "block-00000: 7 of 7 matrices have no gradients of their own and were rounded without them"
    assert form.finish()[WEIGHED].notes[:2] == (first, first.replace("00000", "00001"))


def test_blocks_that_are_given_more_than_hidden_states_are_refused_in_the_plan(narrow: Path, tmp_path: Path) -> None:
    facts = replace(read_facts(narrow), stream_width=10 * read_facts(narrow).hidden_size)
    names = f"{PLAIN},{WEIGHED},w4a16-32g,w4a16-32g-e2e"
    costs = costs_of(parse_variants(names), source_of(narrow), facts, tmp_path, Settings())
    refused = {name: str(why) for name, why in costs.items() if isinstance(why, Unsupported)}
    assert list(refused) == [WEIGHED, "w4a16-32g-e2e"]
    assert refused["w4a16-32g-e2e"].endswith("Ask for w4a16-32g.")


def test_blocks_that_torch_passes_nothing_back_through_are_refused_in_the_plan(narrow: Path, tmp_path: Path) -> None:
    facts = replace(read_facts(narrow), undifferentiated="NotImplementedError: derivative for aten::x")
    costs = costs_of(parse_variants(",".join(NAMES)), source_of(narrow), facts, tmp_path, Settings())
    assert not isinstance(costs[PLAIN], Unsupported)
    assert "derivative for aten::x" in str(costs[WEIGHED])
    assert str(costs[WEIGHED]).endswith(f"Ask for {PLAIN}.")


def test_whether_gradients_pass_back_is_looked_into_where_a_variant_asks_for_them_and_nowhere_else(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "obstacle", lambda _: "NotImplementedError: derivative for aten::x")

    def failed(names: str) -> list[str]:
        settings = load_settings(None, {"variants": names})
        asked = SurveyQuestion(source=source_of(tiny_model("llama")), settings=settings, work=tmp_path / "work")
        return list(survey(asked).refused)

    assert failed(f"{PLAIN},{WEIGHED}") == [WEIGHED]
    monkeypatch.setattr(source, "obstacle", lambda _: pytest.fail("nothing asked for gradients"))
    assert failed(PLAIN) == []


@pytest.mark.slow
def test_a_pass_that_fails_costs_the_variants_that_asked_for_it_and_no_others(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def fail(*_: object) -> None:
        tried.append(1)
        raise MemoryError

    monkeypatch.setattr(gradients._Walk, "_through", fail)
    names = [PLAIN, WEIGHED, "w4a16-32g", "w4a16-32g-e2e"]
    found, alone = opened(narrow, tmp_path / "both", names), opened(narrow, tmp_path / "alone", [PLAIN])
    assert set(found.failed) == {WEIGHED, "w4a16-32g-e2e"}
    assert all("too little room to pass gradients back" in why for why in found.failed.values())
    assert set(found.files) == set(found.scores) == {PLAIN, "w4a16-32g"}
    assert found.seconds["gradients"] > 0  # in vain, too
    before, after = _tensors(alone.files[PLAIN]), _tensors(found.files[PLAIN])
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = opened(narrow, tmp_path / "both", names)
    assert again.failed == found.failed
    assert len(tried) == 1  # what is known to fail is not tried again
