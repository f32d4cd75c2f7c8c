"""The original model, loaded whole by transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from hubbot.model import read_facts
from hubbot.model.absent import parts_left_out
from hubbot.model.config import read_values
from hubbot.model.empty import auto_class, build_model, plain_config
from hubbot.model.released import unquantized
from hubbot.model.weights import read_tensor

__all__ = ["load_whole"]


def load_whole(folder: Path, dtype: torch.dtype | str) -> PreTrainedModel:
    """The model of a folder on the CPU; weights that were released quantized are decoded here as everywhere.

    transformers' own decoding of such weights wants whole blocks, or a GPU and kernels from the Hub.
    """
    config, said = plain_config(folder), read_values(folder / "config.json")
    with parts_left_out(config):
        if unquantized(said) == said:
            model: PreTrainedModel = auto_class(config).from_pretrained(
                folder, config=config, dtype=dtype, local_files_only=True
            )
            return model
        decoded = {name: read_tensor(folder, name, info) for name, info in read_facts(folder).tensors.items()}
        kind = type(build_model(folder))
        return kind.from_pretrained(None, config=config, state_dict=decoded, dtype=dtype)
