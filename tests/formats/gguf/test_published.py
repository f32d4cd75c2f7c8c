"""What transformers makes of config.json, and what llama.cpp's converter is given of both."""

from __future__ import annotations

from typing import Any

from hubbot.formats.gguf.published import as_published


def test_keys_that_transformers_turns_into_others_reach_the_converter_of_its_parts_too() -> None:
    published = {"linear_attn_config": {"head_dim": 64}, "text_config": {"moe_layers_enum": "1", "hidden_size": 8}}
    parsed = {"linear_head_dim": 64, "text_config": {"mlp_layer_types": ["dense", "sparse"], "hidden_size": 16}}
    found = as_published(parsed, published)
    assert found["linear_attn_config"] == {"head_dim": 64}
    assert found["text_config"] == {
        "moe_layers_enum": "1",
        "mlp_layer_types": ["dense", "sparse"],
        "hidden_size": 16,  # where both say something, transformers' word
    }


def test_layers_with_an_index_are_full_attention_as_on_the_hub() -> None:
    parsed = {"layer_types": ["linear_attention", "indexed_attention"]}
    published = {"layer_types": ["linear_attention", "full_attention"]}
    assert as_published(parsed, published)["layer_types"] == published["layer_types"]
    assert as_published(parsed, parsed)["layer_types"] == published["layer_types"]  # saved by transformers


def test_rotary_positions_stay_as_transformers_has_them_with_the_share_that_converters_ask_for() -> None:
    published = {"rope_theta": 5e6, "rope_scaling": None, "partial_rotary_factor": 0.5}
    kinds: dict[str, Any] = {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e4}}
    of_kinds = as_published({"rope_parameters": kinds}, published)
    assert of_kinds["rope_parameters"] == {**kinds, "partial_rotary_factor": 0.5}
    assert "rope_theta" not in of_kinds
    assert "rope_scaling" not in of_kinds
    assert as_published({"rope_parameters": kinds}, {})["rope_parameters"] == kinds
    assert as_published({"rope_parameters": {"partial_rotary_factor": 0.25}}, {})["rotary_pct"] == 0.25
    indexed = {"indexed_attention": {"rope_theta": 1e7}, "sliding_attention": {"rope_theta": 5e4}}
    assert as_published({"rope_parameters": indexed}, {})["rope_parameters"]["full_attention"] == {"rope_theta": 1e7}


def test_the_context_of_a_gpt_2_that_transformers_saved_has_both_of_its_names() -> None:
    assert as_published({"n_positions": 1024}, {})["n_ctx"] == 1024
    assert as_published({"n_positions": 1024}, {"n_ctx": 512})["n_ctx"] == 512
    assert "n_ctx" not in as_published({"max_position_embeddings": 1024}, {})


def test_the_one_key_and_value_head_of_a_model_of_many_queries_is_counted_as_one() -> None:
    heads = {"num_attention_heads": 71, "num_kv_heads": 71, "multi_query": True}
    assert as_published({**heads, "new_decoder_architecture": False}, {})["num_kv_heads"] == 1
    assert as_published({**heads, "new_decoder_architecture": True}, {})["num_kv_heads"] == 71


def test_scores_that_transformers_takes_the_sigmoid_of_are_not_left_to_the_converters_softmax() -> None:
    assert as_published({"model_type": "deepseek_v3"}, {})["scoring_func"] == "sigmoid"
    assert as_published({"model_type": "deepseek_v3"}, {"scoring_func": "softmax"})["scoring_func"] == "softmax"
    assert "scoring_func" not in as_published({"model_type": "deepseek_v2"}, {})
