"""A model's body as its only block: one that goes through lists of blocks in turns, again and again, as HRM does."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

__all__ = ["Body"]


class Body(nn.Module):
    """Everything between a model's embedding and what follows its base model; from then on the model runs through it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        base = model.base_model
        embedding = base.get_input_embeddings()
        for name, module in base.named_children():
            if module is not embedding:
                self.add_module(name, module)
        self._whole = base.forward

        def forward(input_ids: torch.Tensor, **given: Any) -> BaseModelOutputWithPast:
            return BaseModelOutputWithPast(last_hidden_state=self(embedding(input_ids), **given))

        base.forward = forward

    def forward(self, hidden: torch.Tensor, **given: Any) -> torch.Tensor:
        """float [batch, length, width] of the embedding -> the same of the base model's last hidden state."""
        found: torch.Tensor = self._whole(**{**given, "inputs_embeds": hidden}).last_hidden_state
        return found
