"""A generation_config.json that nobody could load, or sample by, is found in the plan."""

from __future__ import annotations

import json

import pytest

from hubbot.child.source import examine
from hubbot.errors import SourceRefused
from hubbot.model import read_facts
from tests.model.folders import copied


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperature": "0.7"}, "temperature of generation_config.json must be a number; found '0.7'. Correct it"),
        ({"top_k": 50.0}, "top_k of generation_config.json must be a whole number; found 50.0"),
        ({"max_new_tokens": -4}, "transformers cannot read generation_config.json: ValueError: `max_new_tokens` must"),
        ({"watermarking_config": {"x": 1}}, "WatermarkingConfig.__init__() got an unexpected keyword argument 'x'"),
    ],
)
def test_what_stops_readers_is_told_in_the_plan(values, said, tiny_model, tmp_path):
    folder = copied(tiny_model("llama"), tmp_path)
    (folder / "generation_config.json").write_text(json.dumps(values))
    with pytest.raises(SourceRefused) as caught:
        examine(read_facts(folder))
    assert said in str(caught.value)


def test_what_only_warns_is_let_pass(tiny_model, tmp_path):
    folder = copied(tiny_model("llama"), tmp_path)
    values = {
        "temperature": 0,
        "do_sample": True,
        "top_k": None,
        "cache_implementation": "hybrid",
        "a_new_key": {"b": 1},
    }
    (folder / "generation_config.json").write_text(json.dumps(values))
    assert examine(read_facts(folder)).notes == ()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m['content'] }", "TemplateSyntaxError"),
        ("{{ messages | frobnicate }}", "No filter named"),
    ],
)
def test_a_chat_template_that_writes_nothing_is_noted_in_the_plan(template, said, tiny_model, tmp_path):
    folder = copied(tiny_model("llama"), tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    found = examine(read_facts(folder))
    assert found.conversation == ""
    assert said in found.notes[-1]
    assert "cards show no conversation" in found.notes[-1]
