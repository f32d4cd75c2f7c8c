"""A tiny random model of any causal language model of transformers: sizes by what its configuration calls them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from hubbot.demo.tokenizer import write_tokenizer
from tests.conformance.gemma3n import complete
from tests.conformance.seeing import DOTS3, PLANS, PUBLISHED, SLIDING, transpose_experts
from tests.gpt2 import END_OF_TEXT, write_gpt2_tokenizer
from tests.models import CONTEXT, VOCABULARY, _pieces, _spread
from tests.vision import make_vision

__all__ = ["BEYOND", "SEEING", "model_type_of", "write_tiny"]

# Sizes under all names that configurations have for them. Widths are multiples of 256, so that k-quants apply.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "word_embed_proj_dim"], 256),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "prefix_dense_intermediate_size"], 512),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads"], 2),
    **dict.fromkeys(["head_dim", "query_pre_attn_scalar"], 64),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len"], CONTEXT),
    **dict.fromkeys(["ffn_hidden_size", "n_inner"], 1024),  # four times the width, which llama.cpp's converter takes for granted
    "sliding_window": 64,
    # experts
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_k", "moe_topk"], 2),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"], 256),
    **dict.fromkeys(["n_shared_experts", "num_shared_experts", "moe_num_shared_experts"], 1),
    **dict.fromkeys(["n_group", "topk_group", "first_k_dense_replace", "num_dense_layers"], 1),
    # latent attention
    **dict.fromkeys(["kv_lora_rank", "q_lora_rank"], 256),
    **dict.fromkeys(["qk_nope_head_dim", "v_head_dim", "index_head_dim"], 64),
    **dict.fromkeys(["qk_rope_head_dim"], 32),
    "index_n_heads": 4,
    "index_topk": 128,
    # state spaces, linear attention
    **dict.fromkeys(["mamba_n_heads", "n_mamba_heads", "mamba_num_heads"], 8),
    **dict.fromkeys(["mamba_d_head", "mamba_head_dim"], 64),
    **dict.fromkeys(["mamba_d_state", "state_size", "ssm_state_size"], 16),
    **dict.fromkeys(["mamba_n_groups", "mamba_ngroups", "n_groups"], 1),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim"], 64),
    **dict.fromkeys(["linear_num_key_heads", "linear_num_value_heads"], 4),
    "num_nextn_predict_layers": 0,
    "num_mtp_layers": 0,
}  # fmt: skip

# The blocks of a draft head, which go on with the keys and values of the model that it drafts for.
_DRAFT: dict[str, Any] = {
    **{
        name: _SIZES[name]
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    },
    **{name: _SIZES[name] for name in ("num_hidden_layers", "head_dim", "max_position_embeddings", "sliding_window")},
    "global_head_dim": 128,
    "vocab_size": VOCABULARY,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
}

# What a model type needs beside or in place of them.
_OWN: dict[str, dict[str, Any]] = {
    "afmoe": {"mup_enabled": True},  # as on the Hub; llama.cpp takes it for granted
    "bamba": {"attn_layer_indices": [1]},
    "cohere2": {"num_hidden_layers": 4},
    "cohere2_moe": {"num_hidden_layers": 4},
    "dbrx": {"ffn_config": {"ffn_hidden_size": 512, "moe_num_experts": 4, "moe_top_k": 2}, "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"head_dim": 32, "num_key_value_heads": 4},
    "deepseek_v3": {"head_dim": 32, "num_key_value_heads": 4},
    "deepseek_v32": {"num_key_value_heads": 4},
    "dots1": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_hidden_layers": 3, "num_key_value_heads": 4, "head_dim": 96, "shared_experts_intermediate_size": 256, **SLIDING},
    "exaone4": {"num_hidden_layers": 4},
    "falcon": {"new_decoder_architecture": True},
    "falcon_h1": {"mamba_d_ssm": 512},
    "gemma3n_text": {"num_hidden_layers": 25, "num_kv_shared_layers": 5, "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 5, "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 15, "hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": VOCABULARY},  # llama.cpp takes 20 layers with keys of their own for granted, and 10 sparse ones
    **{key: {"backbone_hidden_size": 256, "text_config": _DRAFT} for key in ["gemma4_assistant", "gemma4_unified_assistant"]},
    "gemma4_text": {"num_hidden_layers": 6, "num_kv_shared_layers": 3, "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": VOCABULARY, "global_head_dim": 128, **dict.fromkeys(["num_experts", "moe_intermediate_size"])},  # as E2B and E4B; those that see are as the larger ones
    "glm4_moe_lite": {"num_key_value_heads": 4},
    "glm_moe_dsa": {"num_key_value_heads": 4, "num_hidden_layers": 4, "indexer_types": ["full", "shared"] * 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "shared_intermediate_size": 256},
    "granitemoeshared": {"shared_intermediate_size": 256},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"num_hidden_layers": 4},  # the fourth has no rotary positions, which llama.cpp takes for granted
    "mellum": {"num_hidden_layers": 4, "layer_types": ["sliding_attention"] * 3 + ["full_attention"], "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")}},  # llama.cpp has one base for both
    "mamba2": {"num_heads": 8, "head_dim": 64, "state_size": 16},
    "minicpm3": {"num_key_value_heads": 4, "v_head_dim": 64, "head_dim": 96},
    "mpt": {"attn_config": {"alibi": True}},
    "kimi_linear": {"num_hidden_layers": 3, "num_key_value_heads": 4, "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_head_dim": 64, "linear_num_heads": 4, "q_lora_rank": None},
    "mimo_v2_flash": {"head_dim": 192, "v_head_dim": 128},  # as on the Hub, whose share of rotary channels fits no other
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "moe"], "use_mamba_kernels": False},
    "hy_v4": {"num_hidden_layers": 4, "indexer_types": ["full", "shared"] * 2},
    "qwen4_exp_text": {"hc_lowrank": 32, "output_gate_type": "sigmoid", "layer_types": ["linear_attention", "indexed_attention"], "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 64, "indexer_budget": 256, "indexer_compress_ratio": 4},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_moe": {"norm_topk_prob": True},  # as on the Hub; llama.cpp takes it for granted
    "olmoe": {"num_key_value_heads": 4},  # as on the Hub; llama.cpp takes one for each head for granted
    "phi": {"num_key_value_heads": 4, "intermediate_size": 1024},  # likewise, and four times the width
    "phimoe": {"attention_bias": True, "lm_head_bias": True},  # as on the Hub; llama.cpp takes them for granted
    "smollm3": {"num_hidden_layers": 4},
    "youtu": {"num_key_value_heads": 4},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "n_mamba_heads": 2, "mamba_dt_rank": 32, "attention_head_dim": 128, "num_key_value_heads": 4},
    "zamba2": {"num_hidden_layers": 6, "layers_block_type": ["mamba", "hybrid", "hybrid", "hybrid", "mamba", "hybrid"], "num_mem_blocks": 2, "num_key_value_heads": 4, "attention_head_dim": 128, "use_shared_attention_adapter": True, "adapter_rank": 32, "use_mem_rope": True, "n_mamba_heads": 32, "mamba_headdim": 16},  # two shared transformers, adapters, rotary positions: as one or the other is on the Hub
}  # fmt: skip

# Keys that config.json has on the Hub, but not when transformers saves it; None also takes away what only the latter has.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "gpt2": {"n_ctx": CONTEXT},
    "falcon_h1": {"head_dim": 64},
    "gpt_neox": {"rotary_pct": 0.25, "rotary_emb_base": 10000},
    "cohere2": {"rope_theta": 10000.0},
    "phimoe": {"original_max_position_embeddings": CONTEXT},
    "deepseek_v32": {"scoring_func": "sigmoid"},
    "deepseek_v4": {"compress_ratios": [128, 128], "num_hash_layers": 2},
    "dots1": {"scoring_func": "sigmoid"},
    "dots3_note_text": DOTS3,
    "exaone_moe": {"scoring_func": "sigmoid"},
    "glm4_moe_lite": {"first_k_dense_replace": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan_v1_moe": {"moe_intermediate_size": [512, 512], "moe_topk": [2, 2], "num_shared_expert": [1, 1]},
    "glm4_moe": {"head_dim": 64},
    "kimi_linear": {
        "linear_attn_config": {
            "full_attn_layers": [2],
            "kda_layers": [1, 3],
            "head_dim": 64,
            "num_heads": 4,
            "short_conv_kernel_size": 4,
        },
        "first_k_dense_replace": 1,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "num_shared_experts": 1,
        "moe_router_activation_func": "sigmoid",
    },
    "mimo_v2_flash": {
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "rope_parameters": None,
        "rope_theta": 5000000,
        "swa_rope_theta": 10000,
        "partial_rotary_factor": 0.334,
        "swa_head_dim": 192,
        "swa_num_attention_heads": 4,
        "swa_v_head_dim": 128,
        "swa_num_key_value_heads": 4,
        "hybrid_layer_pattern": [0, 1],
    },
    "minimax_m2": {"rotary_dim": 64, "scoring_func": "sigmoid"},
    "stablelm": {"partial_rotary_factor": 0.25},
    "nemotron": {"partial_rotary_factor": 0.5},
    "phi": {"partial_rotary_factor": 0.5},
}

# Tensors that have another name on the Hub than transformers saves them under: pattern, replacement.
_STORED = {
    "kimi_linear": [(r"block_sparse_moe\.(gate|up|down)_proj\.", r"mlp.\1_proj.")],  # of a dense block
    "deepseek_v4": [(r"^model\.", ""), (r"^embed_tokens\.", "embed."), (r"^hc_head\.hc_", "hc_head_")],
    "hy_v4": [
        (r"hc_pre\.(hc_attn_layer|hc_mlp_layer)\.", r"\1.hc_pre."),
        (r"hc_pre\.hc_head\.", "hc_head."),
        (r"mlp\.(.*)linear_gate\.", r"mlp.\1gate_proj."),
    ],
}

# Tensors of the last layers that the Hub's files hold, llama.cpp asks for and nothing computes with: layers, names.
_UNUSED = {"gemma3n_text": (range(20, 25), ("k_proj", "v_proj", "k_norm"))}

# What is done to a folder of a model that sees so that it is as on the Hub.
_FURTHER: dict[str, Callable[[Path], Path]] = {"qwen3_vl_moe": transpose_experts, "gemma3n": complete}

# Of many layers with random weights, logits are sharper than a trained model's, and so is what 8-bit activations do to them.
_CALM = {"gemma3n_text": 0.5}

# Class names on the Hub that transformers calls otherwise.
_HUB_NAMES = {"MptForCausalLM": "MPTForCausalLM", "PhimoeForCausalLM": "PhiMoEForCausalLM"}

# Those whose converter wants a SentencePiece vocabulary; the others get GPT-2's.
_SENTENCEPIECE = frozenset(
    "llama mistral mixtral ministral3 gemma gemma2 gemma3_text gemma3n_text gemma4_text gemma4_assistant "
    "gemma4_unified_assistant phi3 phimoe minicpm3 granite "
    "granitemoe smollm3 zamba zamba2 ernie4_5 ernie4_5_moe jamba nemotron".split()
)
_NO_PREFIX = frozenset("gemma gemma2 gemma3_text gemma3n_text gemma4_text".split())
_TIED = frozenset(
    "gemma gemma2 gemma3_text gemma3n_text gemma4_text cohere cohere2 bloom falcon gpt2 gpt_bigcode bitnet lfm2_moe zamba zamba2".split()
)

# Keys of tokenizer_config.json beside GPT-2's.
_TOKENIZERS: dict[str, dict[str, Any]] = {
    "deepseek_v32": {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}
}

# Special tokens that llama.cpp's converter looks up by name, and the number that it pads a vocabulary to a multiple of.
_GLM = ["[gMASK]", "<|user|>", "<|observation|>"]
_NAMED = {
    **dict.fromkeys("glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa".split(), _GLM),
    "dots3_note_text": ["<|endofassistant|>"],
    "solar_open": ["<unk>", "<|startoftext|>"],
}
_PADDED = dict.fromkeys("bamba falcon_mamba granitemoehybrid jamba mamba mamba2 nemotron_h".split(), 16)

# Beyond what llama.cpp's converter knows under transformers' name: what GPTQModel defines, or names of the Hub's own.
BEYOND = (
    "GPTJForCausalLM",
    "GPTNeoForCausalLM",
    "MptForCausalLM",
    "OPTForCausalLM",
    "PhimoeForCausalLM",
    "Zamba2ForCausalLM",
    "ZambaForCausalLM",
)


# Class -> model type, of those that see images and that there is a tiny model of.
SEEING = {MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[kind]: kind for kind in PLANS}


def model_type_of(architecture: str) -> str | None:
    """The model type of a class that reads text alone; None where it has none."""
    types = [
        kind
        for kind, names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
        if architecture in ([names] if isinstance(names, str) else names)
    ]
    texts = [kind for kind in types if "text_config" not in _fields(kind) or "text_config" in _OWN.get(kind, {})]
    return texts[-1] if texts else None


def _fields(model_type: str) -> frozenset[str]:
    config = transformers.CONFIG_MAPPING[model_type]
    return frozenset(field.name for field in dataclasses.fields(config)) | set(config.attribute_map)


def write_tiny(architecture: str, into: Path) -> Path:
    """Write it as a Hub folder, in bfloat16 with two layers or a few more, and return the folder."""
    if architecture in SEEING:
        kind = SEEING[architecture]
        folder = make_vision(kind, into, plan=PLANS[kind])
        _publish(folder / "config.json", PUBLISHED.get(kind, {}))
        return _FURTHER.get(kind, Path)(folder)
    kind = model_type_of(architecture)
    assert kind, f"{architecture} has no configuration of text alone"
    into.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_vocabulary(kind, into)
    values = {name: value for name, value in _SIZES.items() if name in _fields(kind)} | _OWN.get(kind, {})
    values |= {"vocab_size": vocabulary, "tie_word_embeddings": kind in _TIED, "pad_token_id": 0}
    ends = (1, 2) if kind in _SENTENCEPIECE else (END_OF_TEXT, END_OF_TEXT)
    values |= {"bos_token_id": ends[0], "eos_token_id": ends[1]}
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[kind](**values)
    model = transformers.AutoModelForCausalLM.from_config(config)
    _spread(model, torch.Generator().manual_seed(0))
    if kind in _CALM:
        model.base_model.norm.weight.data.mul_(_CALM[kind])
    model.to(torch.bfloat16).save_pretrained(into)
    if kind in _STORED:
        _rename(into, _STORED[kind])
    if kind in _UNUSED:
        _add_unused(into, *_UNUSED[kind])
    renamed = {"architectures": [_HUB_NAMES[architecture]]} if architecture in _HUB_NAMES else {}
    _publish(into / "config.json", _PUBLISHED.get(kind, {}) | renamed)
    _publish(into / "tokenizer_config.json", _TOKENIZERS.get(kind, {}))
    (into / "README.md").write_text("---\nlicense: mit\n---\n# Tiny random model\n", encoding="utf-8")
    return into


def _write_vocabulary(kind: str, into: Path) -> int:
    if kind not in _SENTENCEPIECE:
        more = _NAMED.get(kind, [])
        rest = -(END_OF_TEXT + 1 + len(more)) % _PADDED.get(kind, 1)
        return write_gpt2_tokenizer(
            into, length=CONTEXT, more=[*more, *(f"<|unused_{index}|>" for index in range(rest))]
        )
    prefix = kind not in _NO_PREFIX
    write_tokenizer(_pieces(prefix), into, length=CONTEXT, space_prefix=prefix)
    return VOCABULARY


def _rename(folder: Path, rules: Iterable[tuple[str, str]]) -> None:
    [path] = folder.glob("*.safetensors")
    named = load_file(path)
    for pattern, replacement in rules:
        named = {re.sub(pattern, replacement, name): tensor for name, tensor in named.items()}
    save_file(named, path, metadata={"format": "pt"})


def _add_unused(folder: Path, layers: Iterable[int], names: Iterable[str]) -> None:
    [path] = folder.glob("*.safetensors")
    tensors = load_file(path)
    stem = "model.layers.{}.self_attn.{}.weight"
    more = {stem.format(layer, name): tensors[stem.format(0, name)].clone() for layer in layers for name in names}
    save_file(tensors | more, path, metadata={"format": "pt"})


def _publish(path: Path, more: Mapping[str, Any]) -> None:
    if more:
        path.write_text(json.dumps(_merged(json.loads(path.read_text()), more), indent=2), encoding="utf-8")


def _merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Without the keys that are there and are to be None, and `text_config` inside likewise."""
    whole = {**values, **more}
    if "text_config" in more:
        whole["text_config"] = _merged(values["text_config"], more["text_config"])
    return {key: value for key, value in whole.items() if not (key in more and key in values and value is None)}
