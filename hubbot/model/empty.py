"""A causal language model without its weights: built from config.json, matched with the checkpoint's names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from hubbot.errors import Unsupported

__all__ = ["build_model", "decoder_blocks", "parameter_names"]


def build_model(folder: Path) -> PreTrainedModel:
    """The model of a folder with parameters on the meta device, buffers (rotary tables) on the CPU, in float32.

    Raises Unsupported where transformers does not know the architecture.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=_attention(config), trust_remote_code=False
            )
    except (ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        msg = (
            f"transformers cannot build a causal language model from {folder.name}/config.json: {error}. "
            "A text model of an architecture that this transformers release knows is needed; "
            "a newer hubbot may know it, or name another model."
        )
        raise Unsupported(msg) from error
    model.eval()
    model.tie_weights()
    return model


def _attention(config: PretrainedConfig) -> str | None:
    """Scaled dot-product attention passes over soft-capped logits (Gemma 2) in silence; eager attention caps them."""
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def decoder_blocks(model: PreTrainedModel, count: int) -> nn.ModuleList:
    """The model's list of `count` decoder blocks. Raises Unsupported where there is none."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count > 0:
            return module
    msg = (
        f"{type(model).__name__} has no list of {count} decoder blocks, which its checkpoint speaks of. "
        "hubbot walks models block by block; this one is built in another way and is not supported yet."
    )
    raise Unsupported(msg)


def parameter_names(model: PreTrainedModel, checkpoint: Iterable[str]) -> dict[str, str]:
    """Checkpoint name -> name of the parameter that it fills, by transformers' own renaming rules.

    Tensors that fill none (rotary tables of old checkpoints) are left out. Raises Unsupported where a
    tensor is stored in a form that is converted when it is loaded (fused experts).
    """
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    wanted = model.state_dict()
    found = {}
    for name in checkpoint:
        target, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
        if converter is not None:
            msg = (
                f"{name} is stored apart from the form that transformers computes with (fused experts or "
                "projections), which hubbot cannot measure yet. Mixture-of-experts models are not supported."
            )
            raise Unsupported(msg)
        if target in wanted:
            found[name] = target
    return found
