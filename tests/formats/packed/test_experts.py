"""compressed-tensors of mixtures of experts: a matrix an expert under the checkpoint's own name, decoded by transformers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hubbot.domain import Family, Gptq, Packed
from hubbot.errors import Unsupported, UnsupportedShape
from hubbot.formats import packed
from hubbot.formats.foreign import read_artefact
from hubbot.formats.gptq.format import costs
from hubbot.formats.gptq.layers import _refuse_experts
from hubbot.formats.linears import Linears
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


def test_a_tensor_of_all_experts_is_refused_by_its_name() -> None:
    whole = Linears(
        blocks=(), head=None, head_module=None, outside=(), stacked=("model.layers.0.mlp.experts.down_proj",)
    )
    with pytest.raises(Unsupported, match=r"experts.down_proj\), which has no names for a matrix for each"):
        _refuse_experts(whole, Family.PACKED, gptqmodel=False)
