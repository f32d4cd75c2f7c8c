"""A causal language model without its weights: built from config.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from hubbot.errors import Unsupported
from hubbot.model.foreign import foreign

__all__ = ["build_model", "decoder_blocks", "is_tied"]


def build_model(folder: Path) -> PreTrainedModel:
    """The model of a folder with parameters on the meta device, buffers (rotary tables) on the CPU, in float32.

    Raises Unsupported where transformers cannot build it, with what it says.
    """
    then = (
        "A text model of an architecture that this transformers release knows is needed, with a config.json that it "
        "can read; a newer hubbot may know it, or name another model."
    )
    what = f"build a causal language model from {folder.name}/config.json"
    with foreign("transformers", what, then=then, kind=Unsupported):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config,
                dtype=torch.float32,
                attn_implementation=_attention(config),
                experts_implementation="eager",  # expert by expert, so that each one's inputs can be told
                trust_remote_code=False,
            )
        model.eval()
        model.tie_weights()
    return model


def _attention(config: PretrainedConfig) -> str | None:
    """Scaled dot-product attention passes over soft-capped logits (Gemma 2) in silence; eager attention caps them."""
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def decoder_blocks(model: PreTrainedModel, places: Iterable[str], count: int) -> nn.ModuleList:
    """The list of `count` decoder blocks: the one that the parameters `places` (of the blocks' tensors) lie in.

    A model may have other lists of that length, such as a vision tower's. Raises Unsupported where there is none.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count > 0
    }
    held = Counter(name for place in places for name in lists if place.startswith(f"{name}."))
    if held:
        return lists[held.most_common(1)[0][0]]
    msg = (
        f"{type(model).__name__} has no list of {count} decoder blocks, which its checkpoint speaks of. "
        "hubbot walks models block by block; this one is built in another way and is not supported yet."
    )
    raise Unsupported(msg)


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output head computes with the embedding's own weights."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return head is not None and head.weight is embedding.weight
