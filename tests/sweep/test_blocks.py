"""The model without weights, and the parts that come into it."""

from pathlib import Path

import pytest
import torch

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
