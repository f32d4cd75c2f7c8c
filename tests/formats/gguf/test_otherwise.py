"""What llama.cpp would compute otherwise than config.json says is refused or noted before anything is made."""

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from hubbot.errors import Unsupported
from hubbot.formats.gguf.otherwise import notes_on, refuse_other_experts, refuse_other_positions, refuse_otherwise

LONG = {"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": [1.0], "long_factor": [2.0]}


@pytest.mark.parametrize(
    ("config", "keys", "noted"),
    [
        ({"sliding_window": 4096}, [], True),
        ({"text_config": {"sliding_window": 4096}}, [], True),
        ({"sliding_window": 4096}, ["gemma3.attention.sliding_window"], False),
        ({"sliding_window": 4096, "use_sliding_window": False}, [], False),
        ({"sliding_window": 4096, "layer_types": ["full_attention"]}, [], False),
        ({"sliding_window": None}, [], False),
        ({}, [], False),
    ],
)
def test_a_window_that_the_file_has_no_key_for_is_noted(config, keys, noted):
    notes = notes_on(config, keys, (), Path("nowhere"))
    assert [("the last 4,096 tokens (sliding_window)" in note) for note in notes] == [True] * noted


def test_layers_behind_the_model_that_no_file_holds_are_noted(tmp_path):
    assert notes_on({}, (), (), tmp_path) == ()
    modules = [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert "modules.json puts 2_Dense (Dense) behind the model" in notes_on({}, (), (), tmp_path)[0]


@pytest.mark.parametrize(
    ("rope", "keys", "tensors", "noted"),
    [
        (None, [], [], None),
        ({"rope_type": "default"}, [], [], None),
        ({"rope_type": "dynamic", "factor": 4.0}, [], [], "rope_type dynamic"),
        ({"type": "linear", "factor": 4.0}, ["llama.rope.scaling.type"], [], None),
        ({"rope_type": "llama3", "factor": 8.0}, [], ["rope_freqs.weight"], None),
        ({"rope_type": "longrope"}, ["phi3.rope.scaling.type"], ["rope_factors_long.weight"], None),
        (LONG, ["phi3.rope.scaling.type"], ["rope_factors_long.weight"], "give it -c 64 for short texts"),
        ({"rope_type": "yarn", "factor": 4.0}, ["llama.rope.scaling.type"], [], None),
        ({"rope_type": "yarn", "truncate": False}, ["llama.rope.scaling.type"], [], "truncate false"),
    ],
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_stretched_positions_that_the_file_says_less_of_are_noted(key, rope, keys, tensors, noted):
    found = notes_on({key: rope}, keys, tensors, Path("nowhere"))
    assert [noted in note for note in found] == ([True] if noted else [])


@pytest.mark.parametrize(
    ("model_type", "key", "asked"),
    [
        ("llama", "hidden_act", "swish"),
        ("llama", "hidden_act", None),
        ("gemma2", "hidden_activation", "gelu"),
        ("gpt2", "activation_function", "gelu"),
        ("no_such_type", "hidden_act", "relu"),
    ],
)
def test_the_architectures_own_activation_function_passes_under_any_of_its_names(model_type, key, asked):
    refuse_otherwise({"model_type": model_type, key: asked})


def test_a_bitnet_is_refused_since_its_matrices_would_be_rounded_and_its_gate_is_anothers():
    with pytest.raises(
        Unsupported, match=r"to three values, .* 'silu' at the gate; .* as they are stored, and 'relu2'"
    ):
        refuse_otherwise({"model_type": "bitnet"})


@pytest.mark.parametrize("inside", [False, True])
def test_another_activation_function_than_the_architectures_is_refused_by_its_key(inside):
    text = {"model_type": "llama", "hidden_act": "gelu"}
    with pytest.raises(
        Unsupported, match=r"hidden_act of config\.json is 'gelu'; llama\.cpp computes 'silu' for every llama"
    ):
        refuse_otherwise({"model_type": "llava", "text_config": text} if inside else text)


@pytest.mark.parametrize(
    ("config", "keys", "refused"),
    [
        ({"model_type": "qwen3_moe", "norm_topk_prob": True}, [], False),
        ({"model_type": "qwen3_moe", "norm_topk_prob": False}, [], True),
        ({"model_type": "qwen3_moe"}, [], True),  # false is what transformers takes then
        ({"model_type": "qwen3_moe"}, ["qwen3moe.expert_weights_norm"], False),
        ({"model_type": "olmoe"}, [], False),
        ({"model_type": "qwen2_moe", "norm_topk_prob": True}, [], True),
        ({"model_type": "mixtral", "norm_topk_prob": False}, [], False),
    ],
)
def test_weights_of_experts_that_llama_cpp_sums_up_otherwise_are_refused(config, keys, refused):
    told = pytest.raises(Unsupported, match=r"norm_topk_prob of config\.json is ") if refused else nullcontext()
    with told:
        refuse_other_experts(config, keys)


def test_tokens_of_images_that_llama_cpp_takes_for_others_fail_in_the_plan():
    images = {f"IMGIMG{number}Z": number for number in range(4, 8196)}
    refuse_otherwise({"model_type": "chameleon", "vocabulary_map": {"<image>": 8711, **images}})
    refuse_otherwise({"model_type": "llama"})
    with pytest.raises(Unsupported, match=r"names 1 tokens of images.*tokens 4 to 8,195 of every chameleon model"):
        refuse_otherwise({"model_type": "chameleon", "vocabulary_map": {"<image>": 8711, "IMGIMGAZ": 500}})


_LARGE = {"num_hidden_layers": 62, "hidden_size": 5376, "num_attention_heads": 32, "head_dim": 128}  # Gemma 3 27B


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "gpt2"}, None),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx of config.json is True"),
        ({"model_type": "falcon"}, None),
        ({"model_type": "falcon", "alibi": True}, "alibi of config.json is True; llama.cpp computes such falcon models with False"),
        ({"model_type": "bloom"}, None),
        ({"model_type": "gemma2"}, None),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, None),
        ({"model_type": "gemma3_text", "query_pre_attn_scalar": 168, **_LARGE}, None),
        ({"model_type": "gemma3_text", "query_pre_attn_scalar": 128, **_LARGE}, "with 168, and no key"),
        ({"model_type": "gemma3_text", "query_pre_attn_scalar": 64, "head_dim": 16}, "is 64; llama.cpp computes such gemma3_text models with 16"),
        ({"model_type": "llama", "query_pre_attn_scalar": 7}, None),
    ],
)  # fmt: skip
def test_attention_that_llama_cpp_has_in_its_program_otherwise_fails_in_the_plan(config, told):
    with pytest.raises(Unsupported, match=told) if told else nullcontext():
        refuse_otherwise(config)


def test_blocks_without_rotary_positions_that_are_not_llama_cpps_fail_in_the_plan():
    for fine in ({"model_type": "smollm3"}, {"model_type": "llama", "no_rope_layers": [0]}):
        refuse_otherwise(fine)
    refuse_otherwise(
        {"model_type": "llama4", "text_config": {"model_type": "llama4_text", "no_rope_layers": [1, 1, 1, 0, 1]}}
    )
    with pytest.raises(Unsupported, match=r"has 0 for block 1; llama\.cpp computes every 4th block of a smollm3 model"):
        refuse_otherwise({"model_type": "smollm3", "no_rope_layers": [1, 0, 1, 0]})
    with pytest.raises(Unsupported, match="has 1 for block 3"):
        refuse_otherwise({"model_type": "smollm3", "no_rope_layers": [1, 1, 1, 1]})


@pytest.mark.parametrize(
    ("rope", "keys", "tensors", "told"),
    [
        ({"rope_type": "linear", "factor": 4.0}, [], [], "writes nothing of it"),
        ({"rope_type": "linear", "factor": 4.0}, ["llama.rope.scaling.type"], [], None),
        ({"rope_type": "yarn"}, [], [], "writes nothing of it"),
        ({"rope_type": "longrope"}, ["llama.rope.scaling.type"], [], "writes none for its architecture"),
        (LONG, ["phi3.rope.scaling.type"], ["rope_factors_long.weight"], "up to 64 tokens"),
        (LONG | {"long_factor": [1.0]}, ["phi3.rope.scaling.type"], ["rope_factors_long.weight"], None),
        (
            LONG | {"original_max_position_embeddings": 32},
            ["phi3.rope.scaling.type"],
            ["rope_factors_long.weight"],
            None,
        ),
        (
            LONG | {"original_max_position_embeddings": 4096},
            ["phi3.rope.scaling.type"],
            ["rope_factors_long.weight"],
            None,
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5},
            ["a.rope.scaling.type"],
            [],
            "by 1.5 (attention_factor 1.5",
        ),
        (
            {"rope_type": "yarn", "beta_fast": 16, "beta_slow": None},
            ["llama.rope.scaling.type"],
            [],
            "(beta_fast 16, beta_slow 1",
        ),
        ({"rope_type": "yarn", "beta_fast": 16, "beta_slow": 2}, ["mistral3.rope.scaling.type"], [], None),
        ({"rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0}, ["llama.rope.scaling.type"], [], None),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.139}, ["a.rope.scaling.type"], [], None),
        (
            {"rope_type": "yarn", "factor": 4.0, "mscale": 1, "mscale_all_dim": 1},
            ["a.rope.scaling.type"],
            [],
            "by 1 (mscale 1",
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "mscale": 1, "mscale_all_dim": 1},
            ["a.rope.scaling.type", "a.rope.scaling.yarn_log_multiplier"],
            [],
            None,
        ),
    ],
)
def test_positions_that_llama_cpp_has_otherwise_from_the_first_tokens_on_fail_in_the_plan(rope, keys, tensors, told):
    with pytest.raises(Unsupported, match=re.escape(told)) if told else nullcontext():
        refuse_other_positions({"rope_parameters": rope}, keys, tensors, 64)


def test_a_window_that_the_file_has_no_key_for_holds_the_evaluation_or_fails_in_the_plan():
    config = {"model_type": "mistral", "sliding_window": 64}
    refuse_other_positions(config, (), (), 64)
    refuse_other_positions(config, ["a.attention.sliding_window"], (), 65)
    with pytest.raises(Unsupported, match=r"last 64 tokens .* reads 65 tokens at a time.*Take --context 64 or less"):
        refuse_other_positions(config, (), (), 65)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gemma3_text", "use_bidirectional_attention": True},
        {"model_type": "gemma4_text", "use_bidirectional_attention": "all"},
        {"model_type": "qwen2", "is_causal": False},
    ],
)
def test_attention_that_looks_ahead_fails_in_the_plan(config):
    with pytest.raises(Unsupported, match=r"attention of config\.json is|is_causal of config\.json is False"):
        refuse_otherwise(config)
    refuse_otherwise({"model_type": "gemma4_text", "use_bidirectional_attention": "vision", "is_causal": True})
