"""A Llama whose widths are no multiple of 256, and one a multiple of nothing."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.models import make_model


def make_odd_llama(into: Path) -> Path:
    make_model("llama", into)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=160,
        intermediate_size=208,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(into)
    return into
