"""What config.json says, under whatever name an architecture says it."""

import json
import re

import pytest

from hubbot.errors import UnsafeSource, Unsupported
from hubbot.model.config import alike_at_all_distances, read_config

VALUES = {"architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "hidden_size": 64, "vocab_size": 512}


def layers(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps({**VALUES, **keys}))
    return read_config(path).layers


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"layers_block_type": ["mamba", "attention", "mamba", "mlp"]}, 4),
        ({"hybrid_override_pattern": "M-M*M-"}, 6),
        ({"layer_types": ["full_attention"] * 3, "num_hidden_layers": None}, 3),
        ({"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}, 2),
    ],
)
def test_a_list_of_the_blocks_kinds_gives_their_number_where_no_key_does(keys, count, tmp_path):
    assert layers(tmp_path, **keys) == count


@pytest.mark.parametrize(
    "keys", [{}, {"layer_types": []}, {"layers_block_type": 7}, {"hybrid_override_pattern": "M" * 2001}]
)
def test_a_model_without_a_number_of_blocks_is_refused(keys, tmp_path):
    with pytest.raises(UnsafeSource, match=r"number that every language model has: layers|lists 2,001 blocks"):
        layers(tmp_path, **keys)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("99.0.1", "written by transformers 99.0.1; here is "),
        ("5.0`; rm -rf", "text. transformers has NemotronHForCausalLM for model_type nemotron_h"),
        (None, "text. transformers has NemotronHForCausalLM for model_type nemotron_h"),
    ],
)
def test_an_unknown_architecture_is_told_with_the_release_that_wrote_its_configuration(written, told, tmp_path):
    with pytest.raises(Unsupported, match=re.escape(told)):
        layers(tmp_path, architectures=["NewForCausalLM"], layer_types=["full_attention"], transformers_version=written)


@pytest.mark.parametrize("name", ["num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"])
@pytest.mark.parametrize("chosen", [0, 4])
def test_more_experts_a_token_than_there_are_or_none_is_refused(chosen, name, tmp_path):
    with pytest.raises(UnsafeSource, match=rf"has 2 experts a layer and gives every token {chosen} of them"):
        layers(tmp_path, layer_types=["full_attention"], num_local_experts=2, **{name: chosen})
    assert layers(tmp_path, layer_types=["full_attention"], num_local_experts=2, **{name: 2}) == 1
    assert layers(tmp_path, layer_types=["full_attention"], num_local_experts=0, **{name: chosen}) == 1


def test_a_negative_number_of_experts_a_token_is_refused(tmp_path):
    with pytest.raises(UnsafeSource, match=r"num_experts_per_tok of config\.json must be a whole number from 0"):
        layers(tmp_path, layer_types=["full_attention"], num_local_experts=2, num_experts_per_tok=-1)


def notes(folder, architecture, model_type):
    path = folder / "config.json"
    path.write_text(json.dumps(VALUES | {"architectures": [architecture], "model_type": model_type, "n_layer": 1}))
    return read_config(path).notes


def test_a_class_of_another_model_type_is_noted_with_both(tmp_path):
    (told,) = notes(tmp_path, "MistralForCausalLM", "llama")
    assert "class MistralForCausalLM and model_type llama, with which transformers builds LlamaForCausalLM" in told


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("LlamaForCausalLM", "llama"),
        ("PhiMoEForCausalLM", "phimoe"),
        ("Gemma3ForCausalLM", "gemma3_text"),
        ("Llama4ForCausalLM", "llama4"),
        ("Llama4ForConditionalGeneration", "llama4"),
        ("LlamaForCausalLM", "a_type_that_transformers_lacks"),
    ],
)
def test_a_class_of_its_model_type_is_not_noted(architecture, model_type, tmp_path):
    assert notes(tmp_path, architecture, model_type) == ()


@pytest.mark.parametrize(
    ("architecture", "does"),
    [
        ("LlamaForSequenceClassification", "judges texts (a classifier or reward model)"),
        ("BertForMaskedLM", "fills gaps in a text (an encoder)"),
        ("BartForConditionalGeneration", "is an encoder-decoder"),
        ("Qwen2AudioForConditionalGeneration", "reads sounds"),
        ("MistralModel", "has no head that writes text"),
        ("Gemma4AssistantForCausalLM", "drafts tokens for another model"),
        ("LlamaForCausalLMEagle3", "drafts tokens for another model"),
    ],
)
def test_a_class_of_another_purpose_is_told_by_what_it_does(architecture, does, tmp_path):
    with pytest.raises(Unsupported, match=re.escape(f"{architecture} {does}")):
        layers(tmp_path, architectures=[architecture], layer_types=["full_attention"])


def test_a_size_that_is_listed_for_every_block_counts_as_its_greatest(tmp_path):
    several = {"num_hidden_layers": 2, "num_attention_heads": [4, 8], "num_key_value_heads": 2, "num_experts": [4, 16]}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(VALUES | several))
    found = read_config(path)
    assert (found.heads, found.experts, found.head_size) == (8, 16, 8)


@pytest.mark.parametrize("value", [[], [4, "8"], [4, -1], [4, True], [[4]], [2**40], [4] * 2001])
def test_a_list_that_is_no_size_for_every_block_is_refused(value, tmp_path):
    with pytest.raises(UnsafeSource, match=r"num_attention_heads of config\.json must be a whole number"):
        layers(tmp_path, num_hidden_layers=2, num_attention_heads=value)


def test_a_list_in_place_of_a_models_own_width_is_refused(tmp_path):
    with pytest.raises(UnsafeSource, match=r"hidden_size of config\.json must be a whole number"):
        layers(tmp_path, num_hidden_layers=2, hidden_size=[64, 64])


def test_how_the_authors_program_ran_the_model_is_no_part_of_it(tmp_path):
    path = tmp_path / "config.json"
    theirs = {
        "_attn_implementation": "flash_attention_2",
        "attn_implementation": "flash_attention_2",
        "return_dict": False,
        "output_attentions": True,
    }
    path.write_text(
        json.dumps(
            {**VALUES, **theirs, "layer_types": ["full_attention"], "text_config": {**VALUES, **theirs, "n_layer": 1}}
        )
    )
    values = read_config(path).values
    assert not theirs.keys() & (values.keys() | values["text_config"].keys())
    assert values["text_config"]["n_layer"] == 1


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("name", ["auto", "torch.bfloat16", "bf16"])
def test_a_type_that_torch_has_not_is_told_with_its_key(key, name, tmp_path):
    with pytest.raises(UnsafeSource, match=rf"{key} of config.json must be one of torch's types.*found '{name}'"):
        layers(tmp_path, layer_types=["full_attention"], **{key: name})
    for known in ("bfloat16", "half", "float", "float8_e4m3fn", {"text_config": "bfloat16"}):
        assert layers(tmp_path, layer_types=["full_attention"], **{key: known}) == 1


def test_a_class_that_stands_in_no_list_is_shown_as_it_is_written(tmp_path):
    with pytest.raises(Unsupported, match=r"in the list `architectures`; found 'LlamaForCausalLM'"):
        layers(tmp_path, architectures="LlamaForCausalLM")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"model_type": "qwen3", "architectures": ["Qwen3Model"]}, "weights of a Qwen3ForCausalLM whose head is"),
        ({"model_type": "gemma3_text", "architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True}, "repo of such a model."),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "repo of such a model."),
    ],
)  # fmt: skip
def test_an_embedding_model_that_looks_back_is_told_which_class_has_its_head(keys, told, tmp_path):
    with pytest.raises(Unsupported, match=re.escape(told)):
        layers(tmp_path, **keys)


@pytest.mark.parametrize(
    ("keys", "alike"),
    [
        ({}, True),
        ({"rope_scaling": None, "sliding_window": None, "use_sliding_window": False, "layer_types": None}, True),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "layer_types": ["full_attention"] * 2}, True),
        ({"sliding_window": 4096, "max_window_layers": 28}, True),  # longer than the text
        ({"sliding_window": 512}, False),
        ({"attention_chunk_size": 128}, False),
        ({"layer_types": ["full_attention", "sliding_attention"]}, False),
        ({"layers_block_type": ["mamba", "attention"]}, False),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, False),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, False),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default"},
                    "sliding_attention": {"rope_type": "yarn"},
                }
            },
            False,
        ),
        ({"text_config": {"rope_scaling": {"rope_type": "longrope"}}}, False),
    ],
)
def test_whether_a_part_of_a_text_shows_what_the_whole_would(keys, alike):
    assert alike_at_all_distances(keys, 2048) is alike
