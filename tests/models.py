"""Tiny models with random weights, one for every family, made on the spot as Hub folders.

Every width is a multiple of 256, so that k-quants and all group sizes apply. Families whose converter class takes a
SentencePiece vocabulary get one trained here; the others (GPT-NeoX, OLMo 2, Cohere 2) get GPT-2's byte-level
vocabulary, rebuilt from the file that llama.cpp's tree carries, because its converter knows the hash of that one.

For Qwen, transformers insists on its own byte-level reading of any tokenizer.json, so there the runtime of a GGUF file
and transformers cut text differently; tokens, weights and logits are not touched by that.
"""

from __future__ import annotations

import json
import sysconfig
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from hubbot.demo.tokenizer import train_tokenizer, write_tokenizer
from tests.gpt2 import END_OF_TEXT, teach_converter, write_gpt2_tokenizer

VOCABULARY = 512
CONTEXT = 128
HIDDEN = 256
LAYERS = 2

# what all configurations share; GPT-NeoX has names of its own
_COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 512,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED: dict[str, Any] = {**_COMMON, "num_key_value_heads": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How to make one family's tiny model."""

    name: str
    config: str  # class in transformers
    values: dict[str, Any]
    tied: tuple[bool, ...] = (False, True)  # what the family allows
    bytes_vocabulary: bool = False  # GPT-2's, where the converter takes no SentencePiece
    space_prefix: bool = True
    published: dict[str, Any] = field(default_factory=dict)  # keys that config.json has on the Hub, but not when saved


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(name="llama", config="LlamaConfig", values=_GROUPED | {"head_dim": 64}),
        Family(name="mistral", config="MistralConfig", values=_GROUPED | {"head_dim": 64, "sliding_window": None}),
        Family(name="qwen2", config="Qwen2Config", values=_GROUPED, bytes_vocabulary=True),  # its class reads no other
        Family(name="qwen3", config="Qwen3Config", values=_GROUPED | {"head_dim": 64}),
        Family(
            name="gemma2",
            config="Gemma2Config",
            values=_GROUPED | {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 64},
            tied=(True,),
            space_prefix=False,
        ),
        Family(
            name="gemma3",
            config="Gemma3TextConfig",
            values=_GROUPED | {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 64},
            tied=(True,),
            space_prefix=False,
        ),
        Family(name="phi3", config="Phi3Config", values=_GROUPED | {"pad_token_id": 0}, tied=(False, True)),
        Family(
            name="gpt_neox",
            config="GPTNeoXConfig",
            values=_COMMON,
            published={"rotary_pct": 0.25, "rotary_emb_base": 10000},
            tied=(False,),
            bytes_vocabulary=True,
        ),
        Family(name="olmo2", config="Olmo2Config", values=_GROUPED, bytes_vocabulary=True, tied=(False,)),
        Family(
            name="granite",
            config="GraniteConfig",
            values=_GROUPED
            | {
                "embedding_multiplier": 12.0,
                "logits_scaling": 8.0,
                "residual_multiplier": 0.22,
                "attention_multiplier": 0.015625,
            },
        ),
        Family(name="smollm3", config="SmolLM3Config", values=_GROUPED | {"pad_token_id": 0, "num_hidden_layers": 4}),
        Family(
            name="cohere2",
            config="Cohere2Config",
            values=_GROUPED | {"head_dim": 64, "sliding_window": 64, "pad_token_id": 0, "num_hidden_layers": 4},
            published={"rotary_pct": 1.0, "rope_theta": 10000.0},
            tied=(True,),
            bytes_vocabulary=True,
        ),
    )
}

_EXPERTS: dict[str, Any] = _GROUPED | {"head_dim": 64, "num_experts_per_tok": 2, "moe_intermediate_size": 256}

# Mixtures of experts: 4 experts of which 2 see a token.
MIXTURES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="qwen3_moe",
            config="Qwen3MoeConfig",
            values=_EXPERTS | {"num_experts": 4, "norm_topk_prob": True},  # as on the Hub, and as llama.cpp computes it
            bytes_vocabulary=True,
        ),
        Family(name="mixtral", config="MixtralConfig", values=_EXPERTS | {"num_local_experts": 4}),
        Family(name="olmoe", config="OlmoeConfig", values=_EXPERTS | {"num_experts": 4}, bytes_vocabulary=True),
        Family(
            name="qwen2_moe",
            config="Qwen2MoeConfig",
            values=_EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 256},
            bytes_vocabulary=True,
        ),
        Family(
            name="granitemoe",
            config="GraniteMoeConfig",
            values=_GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_multiplier": 0.125},
        ),
        Family(
            name="gpt_oss",
            config="GptOssConfig",
            values=_EXPERTS | {"num_local_experts": 4, "sliding_window": 64, "intermediate_size": 256},
            tied=(False,),
            bytes_vocabulary=True,
        ),
        Family(
            name="deepseek_v3",
            config="DeepseekV3Config",
            values=_EXPERTS
            | {
                "head_dim": 32,
                "num_key_value_heads": 4,
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                "n_group": 1,
                "topk_group": 1,
                "first_k_dense_replace": 1,
                "kv_lora_rank": 256,
                "q_lora_rank": 256,
                "qk_nope_head_dim": 64,
                "qk_rope_head_dim": 32,
                "v_head_dim": 64,
            },
            bytes_vocabulary=True,
        ),
    )
}

# Decoders that hand their blocks other things than Llama does: learned positions, biases folded over windows and heads,
# one head of keys, layers that are no plain nn.Linear.
UNLIKE: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="opt",
            config="OPTConfig",
            values={
                "hidden_size": HIDDEN,
                "word_embed_proj_dim": HIDDEN,
                "ffn_dim": 512,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": 4,
                "max_position_embeddings": CONTEXT,
            },
            bytes_vocabulary=True,
        ),
        Family(
            name="gpt2",
            config="GPT2Config",
            values={"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": CONTEXT},
            tied=(True,),
            bytes_vocabulary=True,
        ),
        Family(
            name="bloom",
            config="BloomConfig",
            values={"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": 4},
            tied=(True,),
            bytes_vocabulary=True,
        ),
        Family(
            name="gpt_bigcode",
            config="GPTBigCodeConfig",
            values={"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": CONTEXT, "multi_query": True},
            tied=(True,),
            bytes_vocabulary=True,
        ),
        Family(
            name="falcon",
            config="FalconConfig",
            values={
                "hidden_size": HIDDEN,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": 4,
                "num_kv_heads": 2,
                "new_decoder_architecture": True,
            },
            tied=(True,),
            bytes_vocabulary=True,
        ),
    )
}

_PER_LAYER: dict[str, Any] = _GROUPED | {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "sliding_window": 24,
    "head_dim": 64,
    "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": VOCABULARY,
    "pad_token_id": 0,
}

# Decoders whose blocks are given an embedding of their own for every token, several hidden states of it, keys and values
# of earlier blocks, or which tokens these attended to.
BESIDE: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="gemma4",
            config="Gemma4TextConfig",
            values=_PER_LAYER | {"global_head_dim": 128, **dict.fromkeys(["num_experts", "moe_intermediate_size"])},
            tied=(True,),
            space_prefix=False,
        ),
        Family(
            name="gemma3n",
            config="Gemma3nTextConfig",
            values=_PER_LAYER | {"activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0], "laurel_rank": 32},
            tied=(True,),
            space_prefix=False,
        ),
        Family(
            name="hy_v4",
            config="HYV4Config",
            values=_GROUPED
            | {
                "num_hidden_layers": 4,
                "num_key_value_heads": 4,
                "indexer_types": ["full", "shared"] * 2,
                "index_topk": 16,
                "index_n_heads": 4,
                "index_head_dim": 64,
                "kv_lora_rank": 64,
                "q_lora_rank": 64,
                "qk_nope_head_dim": 32,
                "qk_rope_head_dim": 32,
                "v_head_dim": 32,
                "moe_intermediate_size": 128,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "pad_token_id": 0,
            },
            tied=(False,),
            bytes_vocabulary=True,
        ),
    )
}

_STATES: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_state": 16}

# State spaces and convolutions in the place of attention, or beside it.
HYBRIDS: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="mamba2",
            config="Mamba2Config",
            values={
                "hidden_size": HIDDEN,
                "num_hidden_layers": LAYERS,
                "state_size": 16,
                "num_heads": 8,
                "head_dim": 64,
                "n_groups": 1,
            },
            bytes_vocabulary=True,
        ),
        Family(
            name="falcon_h1",
            config="FalconH1Config",
            values=_GROUPED | _STATES | {"head_dim": 64, "mamba_d_ssm": 256, "mamba_d_head": 32, "mamba_n_groups": 1},
            bytes_vocabulary=True,
        ),
        Family(
            name="bamba",
            config="BambaConfig",
            values=_GROUPED | _STATES | {"mamba_d_head": 64, "attn_layer_indices": [1]},
            bytes_vocabulary=True,
        ),
        Family(
            name="lfm2",
            config="Lfm2Config",
            values=_GROUPED | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
            tied=(True,),
            bytes_vocabulary=True,
        ),
    )
}


def make_model(family: str, into: Path, *, tied: bool | None = None, seed: int = 0, dtype: str = "bfloat16") -> Path:
    """Write a tiny random model of a family as a Hub folder, and return the folder.

    tied: whether embedding and head share their weights; default: untied where the family allows it.
    """
    plan = (FAMILIES | MIXTURES | UNLIKE | HYBRIDS | BESIDE)[family]
    tied = plan.tied[0] if tied is None else tied
    assert tied in plan.tied, f"{family} has no models with tied={tied}"
    into.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_vocabulary(plan, into)
    torch.manual_seed(seed)
    values = plan.values | {"vocab_size": vocabulary, "tie_word_embeddings": tied}
    if plan.bytes_vocabulary:
        values |= {"bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT}
    config = getattr(transformers, plan.config)(**values)
    model = transformers.AutoModelForCausalLM.from_config(config)
    _spread(model, torch.Generator().manual_seed(seed))
    model.to(getattr(torch, dtype)).save_pretrained(into)
    _publish(into / "config.json", plan.published)
    (into / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\n---\n# Tiny random model\n", encoding="utf-8")
    return into


def make_other(config: str, values: dict[str, Any], into: Path, *, bytes_vocabulary: bool = False) -> Path:
    """Write a tiny random model of any other architecture: its configuration class with these values over the usual ones."""
    into.mkdir(parents=True, exist_ok=True)
    small = _GROUPED | {"hidden_size": 64, "intermediate_size": 128}
    if bytes_vocabulary:
        count = _write_byte_level(into)
        small |= {"bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT}
    else:
        count = VOCABULARY
        write_tokenizer(_pieces(True), into, length=CONTEXT)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, config)(**(small | values), vocab_size=count)
    )
    _spread(model, torch.Generator().manual_seed(0))
    model.to(torch.bfloat16).save_pretrained(into)
    (into / "README.md").write_text("---\nlicense: mit\n---\n# Tiny random model\n", encoding="utf-8")
    return into


def _publish(config: Path, keys: dict[str, Any]) -> None:
    if keys:
        config.write_text(json.dumps(json.loads(config.read_text()) | keys, indent=2), encoding="utf-8")


def _write_vocabulary(plan: Family, into: Path) -> int:
    if plan.bytes_vocabulary:
        if plan.name == "qwen2":
            teach_converter()
        return _write_byte_level(into)
    write_tokenizer(_pieces(plan.space_prefix), into, length=CONTEXT, space_prefix=plan.space_prefix)
    return VOCABULARY


def _write_byte_level(into: Path) -> int:
    """GPT-2's tokens and a few unused ones: state spaces pad their vocabulary to a multiple of 16, and llama.cpp relies on it."""
    unused = -(END_OF_TEXT + 1) % 16
    return write_gpt2_tokenizer(into, length=CONTEXT, more=[f"<|unused_{index}|>" for index in range(unused)])


@cache
def _pieces(space_prefix: bool) -> bytes:
    lines = Path(sysconfig.get_path("stdlib"), "argparse.py").read_text(encoding="utf-8").splitlines()
    return train_tokenizer([line for line in lines if line.strip()], vocabulary=VOCABULARY, space_prefix=space_prefix)


def _spread(model: Any, generator: torch.Generator) -> None:
    """Weights as trained models have them: no constant norms or biases, unequal columns.

    The usual initialization hides mistakes: norms of all ones and biases of zero make every mix-up of them invisible.
    """
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
            else:
                columns = torch.exp(0.5 * torch.randn(weight.shape[-1], generator=generator))
                weight.copy_(torch.randn(weight.shape, generator=generator) * columns * 0.5 * weight.shape[-1] ** -0.5)
        for module in model.modules():
            if getattr(module, "scaling", None) == 1.0 and hasattr(module, "q_norm"):
                module.q_norm.weight.mul_(
                    module.head_dim**-0.5
                )  # trained norms hold the factor that Gemma 4 leaves out


def texts(count: int = 40) -> list[str]:
    """Real text for calibration or evaluation: docstrings and code of the standard library."""
    module = Path(sysconfig.get_path("stdlib"), "typing.py").read_text(encoding="utf-8")
    lines = module.splitlines(keepends=True)
    return ["".join(lines[start : start + 30]) for start in range(0, min(len(lines), 30 * count), 30)]
