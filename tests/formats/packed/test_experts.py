"""compressed-tensors of mixtures of experts: a matrix an expert under the checkpoint's own name, decoded by transformers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubbot.domain import Family, Gptq, Packed
from hubbot.errors import Unsupported, UnsupportedShape
from hubbot.formats import packed
from hubbot.formats.foreign import read_artefact
from hubbot.formats.gptq.format import GPTQ, costs
from hubbot.formats.gptq.layers import _refuse_experts, layers_of
from hubbot.formats.linears import Linears, find_linears
from hubbot.formats.packed.checkpoint import PACKED
from hubbot.model import read_facts
from hubbot.settings import load_settings
from tests.conformance.models import write_tiny
from tests.formats.gptq.test_experts import source
from tests.formats.mixtures import swept
from tests.models import make_model

LAYOUT = Gptq(bits=4, group_size=128)
VARIANT = Packed(layout=LAYOUT)


@pytest.mark.slow
def test_transformers_computes_what_the_sweep_computed_with_experts_of_codes(tmp_path: Path) -> None:
    """Mixtral's checkpoint calls its experts otherwise than transformers does, and its router is a matrix that stays."""
    folder = make_model("mixtral", tmp_path / "tiny")
    facts = read_facts(folder)
    result, references = swept(folder, tmp_path, {VARIANT.name: PACKED})
    where = result.files[VARIANT.name].paths[0].parent
    names = set(load_file(where / "model.safetensors"))
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight_packed" in names
    assert "model.layers.1.block_sparse_moe.gate.weight" in names
    config = json.loads((where / "config.json").read_text())["quantization_config"]
    assert {"lm_head", "model.layers.0.block_sparse_moe.gate"} <= set(config["ignore"])
    assert set(read_artefact(where, facts)._tensors) == set(facts.tensors)
    check = packed.read(sorted(where.iterdir()), references[VARIANT.name]).check
    assert check.passed, check
    assert check.kld is not None
    assert check.kld < 1e-3


def test_experts_with_zero_points_are_refused_in_the_plan_for_transformers_leaves_those_out(tmp_path: Path) -> None:
    facts = read_facts(make_model("mixtral", tmp_path / "tiny"))
    uneven = Packed(layout=replace(LAYOUT, symmetric=False))
    told = costs([VARIANT, uneven], facts, source(facts.folder), load_settings(None, {}).gptq, PACKED)
    assert not isinstance(told[VARIANT.name], Unsupported)
    assert isinstance(told[uneven.name], UnsupportedShape)
    assert "without their zero points" in str(told[uneven.name])


def test_tensors_that_transformers_puts_together_undecoded_are_refused_in_the_plan_by_name(tmp_path: Path) -> None:
    """Kimi Linear's three convolutions are one in transformers, which then takes their weights for codes."""
    facts = read_facts(write_tiny("KimiLinearForCausalLM", tmp_path / "tiny"))
    told = costs([VARIANT], facts, source(facts.folder), load_settings(None, {}).gptq, PACKED)
    assert re.search(r"puts model.layers.0.self_attn.[qkv]_conv1d.weight together", str(told[VARIANT.name]))


def test_a_block_of_experts_that_predicts_further_tokens_stays_whole_and_readers_are_told(tmp_path: Path) -> None:
    folder = make_model("mixtral", tmp_path / "tiny")
    tensors = load_file(folder / "model.safetensors")
    more = {
        name.replace("layers.1.", "layers.2."): tensor.clone()
        for name, tensor in tensors.items()
        if "layers.1." in name
    }
    save_file(
        tensors | more | {"mtp.fc.weight": torch.ones(4, 4)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    facts, settings = read_facts(folder), load_settings(None, {}).gptq
    told = costs([VARIANT], facts, source(facts.folder), settings, PACKED)
    assert not isinstance(told[VARIANT.name], Unsupported)
    choice = layers_of(find_linears(facts), facts, Family.PACKED, settings).choose(LAYOUT)
    assert not any("layers.2." in name for name in choice.rounded)
    patterns = [
        re.compile(word[3:]) for word in PACKED.config(LAYOUT, settings, choice)["ignore"] if word.startswith("re:")
    ]
    dynamic = GPTQ.config(LAYOUT, settings, choice)["dynamic"]
    assert [*dynamic.values()] == [{}, {}]
    patterns += [re.compile(word[2:]) for word in dynamic]
    for module, count in {
        "model.layers.2.self_attn.q_proj": 2,
        "mtp.fc": 2,
        "model.layers.1.self_attn.q_proj": 0,
    }.items():
        assert sum(bool(pattern.match(module)) for pattern in patterns) == count


def test_a_tensor_of_all_experts_is_refused_by_its_name() -> None:
    whole = Linears(
        blocks=(), head=None, head_module=None, outside=(), stacked=("model.layers.0.mlp.experts.down_proj",)
    )
    with pytest.raises(Unsupported, match=r"experts.down_proj\), which has no names for a matrix for each"):
        _refuse_experts(whole, Family.PACKED, gptqmodel=False)
