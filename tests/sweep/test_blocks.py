"""The model without weights, and the parts that come into it."""

from pathlib import Path

import pytest
import torch
import transformers

from hubbot.errors import Unsupported
from hubbot.model import part_layout, read_facts
from hubbot.model.parts import PartKind
from hubbot.sweep.blocks import BlockModel
from hubbot.sweep.weights import CheckpointWeights
from tests.models import make_model


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A mixture of experts with its first block installed, and what that was installed from."""
    folder = make_model("qwen3_moe", tmp_path_factory.mktemp("blocks") / "mixture")
    return *_with_a_block(folder), folder


def _with_a_block(folder):
    facts = read_facts(folder)
    parts = part_layout(facts)
    model = BlockModel(folder, parts, torch.device("cpu"))
    block = next(part for part in parts if part.kind is PartKind.BLOCK)
    weights = CheckpointWeights(folder, facts.tensors, block.tensors)
    model.install(weights)
    return model, weights


def test_experts_that_are_kept_as_stored_keep_no_file_mapped(mixture):
    _, _, folder = mixture
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_weights_that_are_stored_in_float32_keep_no_file_mapped(tmp_path):
    installed = _with_a_block(make_model("llama", tmp_path / "wide", dtype="float32"))
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    del installed


def test_weights_that_pass_stand_in_the_model_and_leave_the_originals_known(mixture):
    model, weights, _ = mixture
    names = [name for name in weights if ".experts." in name]
    before = {name: value.clone() for name, value in model.model.named_parameters() if not value.is_meta}
    for group in model.together(names):
        model.install({name: 2 * weights[name].float() for name in group}, passing=True)
    experts = {name for name in before if ".experts." in name}
    assert experts
    now = dict(model.model.named_parameters())
    assert all(torch.equal(now[name], 2 * before[name]) for name in experts)
    assert all(torch.equal(model.installed(name), weights[name]) for name in names)
    model.install({name: model.installed(name) for name in names}, passing=True)
    assert all(torch.equal(value, before[name]) for name, value in model.model.named_parameters() if name in before)


def test_a_projection_behind_the_blocks_is_the_heads_and_one_under_another_name_is_told_before_any_work(
    tmp_path, monkeypatch
):
    folder = make_model("opt", tmp_path / "tiny")
    config = transformers.OPTConfig.from_pretrained(folder, word_embed_proj_dim=128, do_layer_norm_before=False)
    transformers.OPTForCausalLM(config).save_pretrained(folder)  # as OPT 350M
    facts = read_facts(folder)
    head = part_layout(facts)[-1]
    assert any(name.endswith("project_out.weight") for name in head.tensors)
    assert BlockModel(folder, part_layout(facts), torch.device("cpu")).passage.stream_width == 256
    monkeypatch.setattr("hubbot.model.parts._HEAD", frozenset({"lm_head"}))
    with pytest.raises(
        Unsupported, match="Linear follows the decoder blocks of OPTForCausalLM, and its weights were taken"
    ):
        _ = BlockModel(folder, part_layout(facts), torch.device("cpu")).passage
