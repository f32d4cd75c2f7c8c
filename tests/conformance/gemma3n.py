"""Gemma 3n as the Hub has it: text, ears, and eyes that are a model of timm's, which nobody needs in order to make them here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.models import CONTEXT, VOCABULARY
from tests.vision import _TEXT, Vision

__all__ = ["GEMMA3N", "SMALL_GEMMA3N", "add_eyes", "complete"]

_WIDTH = 64  # of what the eyes give
_MARKS = {
    "boi_token_id": "<start_of_image>",
    "boa_token_id": "<start_of_audio>",
    "eoi_token_id": "<end_of_image>",
    "image_token_id": "<image_soft_token>",
    "eoa_token_id": "<end_of_audio>",
    "audio_token_id": "<audio_soft_token>",
}
_SEEN, _HEARD = VOCABULARY + 2, VOCABULARY + 4  # the first marks that the text's own table of layers has no rows for
_EARS: dict[str, Any] = {
    "hidden_size": 64,
    "input_feat_size": 32,
    "vocab_size": 2,
    "vocab_offset": _HEARD,
    "conf_num_attention_heads": 2,
    "conf_num_hidden_layers": 1,
    "sscp_conv_channel_size": [16, 8],
}

GEMMA3N = Vision(
    config="Gemma3nConfig",
    text=_TEXT
    | {"max_position_embeddings": CONTEXT, "head_dim": 64, "sliding_window": 64}
    | {"num_hidden_layers": 25, "num_kv_shared_layers": 5, "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 15}
    | {"layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 5}
    | {"hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": _SEEN},
    vision={"hidden_size": _WIDTH, "vocab_size": 2, "vocab_offset": _SEEN, "label_names": ["LABEL_0", "LABEL_1"]},
    values={"audio_config": _EARS},
    marks=_MARKS,
    preprocessor={"image_processor_type": "SiglipImageProcessor", "size": {"height": 768, "width": 768}},
    processor={"processor_class": "Gemma3nProcessor"},
    bytes_vocabulary=False,
    chat="<image_soft_token>",
)

# Of four layers, which transformers takes and llama.cpp does not.
SMALL_GEMMA3N = replace(
    GEMMA3N,
    text=GEMMA3N.text
    | {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0]}
    | {"layer_types": ["sliding_attention", "full_attention"] * 2},
)

_NORM = "model.language_model.norm.weight"

# MobileNetV5's layers, a block or two of each of its four stages: shape of a kernel, or of a norm.
_EYES: dict[str, tuple[int, ...]] = {
    "conv_stem.conv.weight": (16, 3, 3, 3),
    "conv_stem.conv.bias": (16,),
    "conv_stem.bn.weight": (16,),
    "blocks.0.0.conv_exp.weight": (32, 16, 3, 3),
    "blocks.0.0.bn1.weight": (32,),
    "blocks.0.0.conv_pwl.weight": (16, 32, 1, 1),
    "blocks.0.0.bn2.weight": (16,),
    **{f"blocks.{stage}.0.dw_mid.conv.weight": (32, 1, 3, 3) for stage in (1, 2, 3)},
    **{f"blocks.{stage}.0.dw_mid.bn.weight": (32,) for stage in (1, 2, 3)},
    **{f"blocks.{stage}.0.pw_exp.conv.weight": (32, 16, 1, 1) for stage in (1, 2, 3)},
    **{f"blocks.{stage}.0.pw_exp.bn.weight": (32,) for stage in (1, 2, 3)},
    **{f"blocks.{stage}.0.pw_proj.conv.weight": (16, 32, 1, 1) for stage in (1, 2, 3)},
    **{f"blocks.{stage}.0.pw_proj.bn.weight": (16,) for stage in (1, 2, 3)},
    **{f"blocks.{stage}.0.layer_scale.gamma": (16,) for stage in (1, 2, 3)},
    "blocks.3.1.norm.weight": (16,),
    "blocks.3.1.attn.query.proj.weight": (32, 16, 1, 1),
    "blocks.3.1.attn.key.proj.weight": (16, 16, 1, 1),
    "blocks.3.1.attn.value.proj.weight": (16, 16, 1, 1),
    "blocks.3.1.attn.output.proj.weight": (16, 32, 1, 1),
    "blocks.3.1.layer_scale.gamma": (16,),
    "msfa.ffn.pw_exp.conv.weight": (64, 32, 1, 1),
    "msfa.ffn.pw_exp.bn.weight": (64,),
    "msfa.ffn.pw_proj.conv.weight": (_WIDTH, 64, 1, 1),
    "msfa.ffn.pw_proj.bn.weight": (_WIDTH,),
    "msfa.norm.weight": (_WIDTH,),
}


def complete(folder: Path) -> Path:
    """With the weights of its eyes, and of the last layers that nothing computes with, as the Hub's files hold both."""
    [path] = add_eyes(folder).glob("*.safetensors")
    tensors = load_file(path)
    tensors[_NORM] = tensors[_NORM] * 0.5  # as `_CALM` of the class of text alone
    stem = "model.language_model.layers.{}.self_attn.{}.weight"
    unused = [(layer, name) for layer in range(20, 25) for name in ("k_proj", "v_proj", "k_norm")]
    more = {stem.format(*each): tensors[stem.format(0, each[1])].clone() for each in unused}
    save_file(tensors | more, path, metadata={"format": "pt"})
    return folder


def add_eyes(folder: Path) -> Path:
    [path] = folder.glob("*.safetensors")
    seed = torch.Generator().manual_seed(0)
    eyes = {f"model.vision_tower.timm_model.{name}": _random(shape, seed) for name, shape in _EYES.items()}
    save_file(load_file(path) | eyes, path, metadata={"format": "pt"})
    return folder


def _random(shape: tuple[int, ...], seed: torch.Generator) -> torch.Tensor:
    """A kernel around zero, a norm around one."""
    noise = torch.randn(shape, generator=seed)
    return (1 + 0.1 * noise if len(shape) == 1 else 0.2 * noise).to(torch.bfloat16)
