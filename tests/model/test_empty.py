"""The model that is built of a configuration alone."""

import pytest
import torch
from torch import nn
from transformers.initialization import TORCH_INIT_FUNCTIONS

from hubbot.model.empty import build_model
from hubbot.model.whole import load_whole
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
