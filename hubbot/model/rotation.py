"""Rotary positions of a part of each head, which config.json may ask for and transformers' class pass over."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["rotated_whole"]


def rotated_whole(model: nn.Module) -> float | None:
    """The share of a head that the configuration wants rotated (`partial_rotary_factor`), where the model rotates all of it.

    None where the two agree. model: as it is built, with the tables of its rotary positions.
    """
    for module in model.modules():
        table, config = getattr(module, "inv_freq", None), getattr(module, "config", None)
        if getattr(module, "rope_type", None) != "default" or not isinstance(table, torch.Tensor) or config is None:
            continue
        share = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if isinstance(share, int | float) and share < 1 and len(table) == head // 2 != -(-int(head * share) // 2):
            return float(share)
    return None
