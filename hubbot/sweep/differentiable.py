"""Whether gradients pass back through a model's blocks, told before a weight is read."""

from __future__ import annotations

import copy

import torch
from torch import nn

from hubbot.errors import Unsupported
from hubbot.model.body import Body
from hubbot.model.foreign import foreign, said
from hubbot.sweep.blocks import BlockModel, without_experts
from hubbot.sweep.given import BlockArguments

__all__ = ["obstacle"]

_TOKENS = 16


def obstacle(model: BlockModel) -> str | None:
    """What torch says where no gradient passes back through a block, found by passes that have shapes and no data.

    One block of each kind is asked. Not for models whose blocks are given more of earlier blocks than hidden states. None where
    nothing speaks against it: a block that cannot even pass forth without data is not judged, and experts, which sort tokens by
    what they hold, are left out. A body that is gone through in turns may compute some of them without gradients, as HRM's does.
    """
    if any(isinstance(block, Body) for block in model.blocks):
        return "it goes through its blocks in turns, and may keep no gradients of some"
    asked: set[str] = set()
    hidden = model.passage.layout.given(torch.empty((1, _TOKENS, model.passage.layout.width), device="meta"))
    for block, arguments in zip(model.blocks, model.arguments(_TOKENS), strict=True):
        kind = repr(block)
        if kind not in asked:
            asked.add(kind)
            bare = without_experts(copy.deepcopy(block)).to("meta")
            given = arguments.with_tensors(lambda tensor: torch.empty_like(tensor, device="meta"))
            if _passes(bare, hidden, given) is None and (told := _passes(bare, hidden.requires_grad_(), given)):
                return told
            hidden.requires_grad_(False)
    return None


def _passes(block: nn.Module, hidden: torch.Tensor, arguments: BlockArguments) -> str | None:
    """What is said where it does not; back, too, where the hidden states want it."""
    try:
        with foreign("torch", "run a block without weights", then="", kind=Unsupported):
            out = block(hidden.clone(), *arguments.positional, **arguments.named)
            out = out[0] if isinstance(out, tuple) else out
            if hidden.requires_grad:
                torch.autograd.grad(out, hidden, torch.empty_like(out))
    except Unsupported as error:
        return said(error.__cause__ or error)
    return None
