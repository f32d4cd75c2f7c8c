"""A language model, one that sees images too, without its weights: built from config.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)

from hubbot.errors import Unsupported
from hubbot.model.absent import parts_left_out
from hubbot.model.architectures import sees_images
from hubbot.model.body import Body
from hubbot.model.foreign import foreign
from hubbot.model.mapping import CheckpointMap
from hubbot.model.parts import Part, PartKind

__all__ = ["auto_class", "build_model", "config_defaults", "decoder_blocks", "is_tied", "plain_config"]


def build_model(folder: Path) -> PreTrainedModel:
    """The model of a folder with parameters on the meta device, buffers (rotary tables) on the CPU, in float32.

    A part that wants a package which is not here, and that no text passes through, is left out (`hubbot.model.absent`).

    Raises Unsupported where transformers cannot build it, with what it says.
    """
    then = (
        "Nobody can load the model with this release of transformers: correct config.json in a copy of it if a value is wrong, "
        "or ask the author; a newer hubbot may know it."
    )
    what = f"build a language model from {folder.name}/config.json"
    with foreign("transformers", what, then=then, kind=Unsupported):
        config = plain_config(folder)
        model = _built(config, _WithoutMemory())
        if any(buffer.is_meta for buffer in model.buffers()):
            model = _built(config, nullcontext())
        model.eval()
        model.tie_weights()
    return model


def _built(config: PretrainedConfig, within: AbstractContextManager[object]) -> PreTrainedModel:
    with _without_weights(), within, parts_left_out(config):
        model: PreTrainedModel = auto_class(config).from_config(
            config,
            dtype=torch.float32,
            attn_implementation=_attention(config),
            experts_implementation="eager",  # expert by expert, so that each one's inputs can be told
            trust_remote_code=False,
        )
    return model


class _WithoutMemory(TorchFunctionMode):
    """Inside, what is made without values lies on the meta device at once: parameters, but for a buffer filled later.

    A matrix of all experts has 30 GB in float32, more than a survey may ask for, though nobody writes to it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is torch.empty and named.get("device") is None:
            named = {**named, "device": "meta"}
        return func(*args, **named)


@contextmanager
def _without_weights() -> Iterator[None]:
    """Parameters are made on the meta device and told to be filled already; buffers get their values on the CPU.

    Filling empty parameters with random numbers would take longer than all else that is done to such a model.
    """
    with init_empty_weights(include_buffers=False):
        register = nn.Module.register_parameter

        def register_filled(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
            register(self, name, param)
            if param is not None:
                self._parameters[name]._is_hf_initialized = True  # type: ignore[union-attr]

        nn.Module.register_parameter = register_filled  # type: ignore[method-assign]
        yield  # init_empty_weights puts the first one back


def plain_config(folder: Path) -> PretrainedConfig:
    """transformers' configuration of a folder, as it is of decoded weights, with none of its author's ways to run it."""
    config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
        part.return_dict, part._attn_implementation = True, None
        part.output_attentions = part.output_hidden_states = False
    return config


def config_defaults(model_type: str) -> dict[str, Any]:
    """What transformers takes for keys of such a configuration that are not given; nothing of a type unknown to it."""
    if model_type not in CONFIG_MAPPING:
        return {}
    return {each.name: each.default for each in fields(CONFIG_MAPPING[model_type]) if each.default is not MISSING}


def auto_class(config: PretrainedConfig) -> type[AutoModelForCausalLM | AutoModelForImageTextToText]:
    """transformers' class that loads a model whole: with the part that sees images, where its class has one."""
    names = config.architectures or [""]
    kind: type[AutoModelForCausalLM | AutoModelForImageTextToText]
    kind = AutoModelForImageTextToText if sees_images(names[0]) else AutoModelForCausalLM
    return kind


def _attention(config: PretrainedConfig) -> str | None:
    """Scaled dot-product attention passes over soft-capped logits (Gemma 2) in silence; eager attention caps them."""
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def decoder_blocks(model: PreTrainedModel, parts: Iterable[Part], checkpoint: CheckpointMap) -> nn.ModuleList:
    """The list of decoder blocks: the one, as long as said, that the parameters of the blocks' tensors lie in, or the model's body
    as one block.

    A model may have other lists of that length, such as a vision tower's. Raises Unsupported where there is none.
    """
    blocks = [part for part in parts if part.kind is PartKind.BLOCK]
    if blocks[0].in_turns:
        return nn.ModuleList([Body(model)])
    count = len(blocks)
    places = (group.target for part in blocks for name in part.tensors if (group := checkpoint.group_of.get(name)))
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
