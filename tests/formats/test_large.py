"""Weights beyond float16, and blocks that predict further tokens: each variant says what it makes of them."""

from __future__ import annotations

import pytest
import torch

from hubbot.child.messages import SurveyQuestion
from hubbot.child.survey import survey
from hubbot.domain import Source
from hubbot.formats import costs_of, overflows_of
from hubbot.formats.names import parse_variants
from hubbot.formats.protocol import Cost, large_notes
from hubbot.model import check_finite, read_facts
from hubbot.model.agreement import agreed
from hubbot.settings import Settings, load_settings
from tests.model.folders import change, copied, rewrite

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny_model, tmp_path):
    return copied(tiny_model("llama"), tmp_path)


def source_of(folder):
    return Source(folder=str(folder), repo=None, revision=None, files={}, license="mit")


def overflowing(folder, names, work):
    facts = agreed(read_facts(folder))
    large = check_finite(folder, facts)
    return overflows_of(parse_variants(names), source_of(folder), facts, work, Settings(), large)


def test_the_variants_that_pass_through_float16_are_named_with_tensor_value_and_limit(folder, tmp_path):
    def edit(tensors):
        tensors[UP][3, 5] = -(2.0**17)

    rewrite(folder, edit)
    asked = "F16,BF16,Q8_0,Q4_1,Q4_K_M,gptq-4bit-128g,bnb-int8,bnb-nf4"
    found = overflowing(folder, asked, tmp_path / "work")
    assert sorted(found) == ["F16", "Q4_1", "bnb-int8", "gptq-4bit-128g"]
    for name, why in found.items():
        assert f"{UP} holds 131,072 at [3, 5], and {name} passes through float16" in why
        assert "65,504" in why


def test_the_plan_of_a_folder_names_them_before_anything_is_made(folder, tmp_path):
    def edit(tensors):
        tensors[UP][3, 5] = 2.0**17

    rewrite(folder, edit)
    settings = load_settings(None, {"variants": "Q8_0,gptq-4bit-128g"})
    found = survey(SurveyQuestion(source=source_of(folder), settings=settings, work=tmp_path / "work"))
    assert list(found.prices) == ["Q8_0"]
    (failed,) = found.refused.values()
    assert f"{UP} holds 131,072 at [3, 5], and gptq-4bit-128g passes through float16" in str(failed)
    assert f"{UP} holds 131,072 at [3, 5], beyond float16's 65,504" in found.notes[-1]


def test_a_large_value_outside_of_what_is_quantized_refuses_nothing(folder, tmp_path):
    def edit(tensors):
        tensors["model.norm.weight"][0] = 2.0**17

    rewrite(folder, edit)
    assert overflowing(folder, "F16,Q4_1,gptq-4bit-128g,bnb-int8", tmp_path / "work") == {}
    assert large_notes(check_finite(folder, agreed(read_facts(folder)))) == ()


def test_what_no_float16_scale_can_carry_is_refused_for_every_type_that_has_one(folder, tmp_path):
    def edit(tensors):
        tensors[UP][3, 5] = 1e12

    rewrite(folder, edit)
    assert sorted(overflowing(folder, "BF16,Q8_0,Q4_0", tmp_path / "work")) == ["Q4_0", "Q8_0"]


def test_a_prediction_block_that_the_converter_has_no_place_for_is_left_out_of_the_gguf(folder, tmp_path):
    def edit(tensors):
        third = {n.replace("layers.1.", "layers.2."): t.clone() for n, t in tensors.items() if "layers.1." in n}
        return {**tensors, **third, "model.layers.2.eh_proj.weight": torch.ones(256, 512, dtype=torch.bfloat16)}

    plain = agreed(read_facts(folder))
    rewrite(folder, edit)
    change(folder / "config.json", num_nextn_predict_layers=1)
    facts = agreed(read_facts(folder))
    asked = parse_variants("Q8_0,gptq-8bit-32g,bnb-nf4")
    after = weight_bytes(costs_of(asked, source_of(folder), facts, tmp_path / "work", Settings()))
    before = weight_bytes(costs_of(asked, source_of(folder), plain, tmp_path / "before", Settings()))
    extra = sum(facts.tensors[name].size for name in facts.prediction)
    more = {name: size - before[name] for name, size in after.items()}
    assert more == {"Q8_0": 0, "gptq-8bit-32g": extra, "bnb-nf4": extra}


def weight_bytes(costs):
    return {name: cost.weight_bytes for name, cost in costs.items() if isinstance(cost, Cost)}
