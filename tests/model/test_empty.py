"""The model that is built of a configuration alone."""

import json
import re
import resource
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import DeepseekV3Config, Florence2Config
from transformers.initialization import TORCH_INIT_FUNCTIONS

from hubbot.errors import Unsupported
from hubbot.model.empty import build_model
from hubbot.model.whole import load_whole
from tests.model.folders import change, copied
from tests.models import make_model


def test_no_parameter_is_made_and_the_rotary_tables_are_those_of_the_loaded_model(tmp_path, monkeypatch):
    folder = make_model("llama", tmp_path / "tiny")
    register = nn.Module.register_parameter
    with monkeypatch.context() as context:
        context.setitem(TORCH_INIT_FUNCTIONS, "normal_", lambda *_, **__: pytest.fail("an empty parameter was filled"))
        empty = build_model(folder)
    assert nn.Module.register_parameter is register
    assert all(parameter.is_meta for parameter in empty.parameters())
    whole = dict(load_whole(folder, torch.float32).named_buffers())
    assert whole
    assert {name for name, table in empty.named_buffers() if torch.equal(table, whole[name])} == whole.keys()


def test_a_matrix_of_all_experts_takes_no_memory(tmp_path):
    config = DeepseekV3Config(num_hidden_layers=4, architectures=["DeepseekV3ForCausalLM"])  # 30 GB a matrix
    config.save_pretrained(tmp_path)
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    in_use = 1024 * int(re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    resource.setrlimit(resource.RLIMIT_DATA, (in_use + 2**30, hard))
    try:
        parameters = list(build_model(tmp_path).parameters())
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))
    assert max(parameter.numel() for parameter in parameters) == 256 * 4096 * 7168
    assert all(parameter.is_meta for parameter in parameters)


def test_a_buffer_that_is_filled_after_it_was_made_has_its_values(tmp_path):
    Florence2Config(architectures=["Florence2ForConditionalGeneration"]).save_pretrained(tmp_path)
    model = build_model(tmp_path)
    [table] = [each for name, each in model.named_buffers() if name.endswith("pos_idx_to_embed")]
    assert torch.equal(table[:, 0], torch.arange(100.0).sin())
    assert torch.equal(table[:, 1], torch.arange(100.0).cos())


def test_a_model_whose_author_had_another_attention_and_tuples_runs_here(tiny_model, tmp_path):
    folder = copied(tiny_model("llama"), tmp_path)
    change(folder / "config.json", attn_implementation="flash_attention_2", return_dict=False)
    change(folder / "config.json", output_hidden_states=True)
    for model in (build_model(folder).to("meta"), load_whole(folder, torch.float32)):
        tokens = torch.arange(4, device=model.device)[None]
        assert model(input_ids=tokens).logits.shape[:2] == (1, 4)


def test_a_key_that_transformers_takes_for_mistyped_is_told_with_what_to_do(tiny_model, tmp_path):
    folder = copied(tiny_model("llama"), tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attention_bias": None}))
    with pytest.raises(Unsupported, match=r"'attention_bias' expected bool.*correct config.json in a copy"):
        build_model(folder)
