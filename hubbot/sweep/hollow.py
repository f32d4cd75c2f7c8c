"""Running a model's own forward while parts of it have no weights: stand-ins take the places of modules."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

__all__ = ["passed_over", "stand_ins"]


@contextlib.contextmanager
def stand_ins(blocks: nn.ModuleList, make: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    """Inside, each block's forward is the one that `make` gives for its number."""
    with _replaced({block: make(index) for index, block in enumerate(blocks)}):
        yield


@contextlib.contextmanager
def passed_over(
    modules: Iterable[nn.Module],
    asking: Callable[[nn.Module], None] = lambda _: None,
    *,
    device: torch.device,
) -> Iterator[None]:
    """Inside, these modules compute nothing, and what they give still tells what it depends on.

    An embedding gives the token's number all over its width, a linear layer its first input all over its own, others
    what they get. asking: called with each that is run, before it. device: where models that look at an embedding's
    weights themselves find zeros.
    """
    modules = tuple(modules)
    embeddings = [module for module in modules if isinstance(module, nn.Embedding)]
    with _replaced({module: _nothing(module, asking) for module in modules}), _zeroed(embeddings, device):
        yield


@contextlib.contextmanager
def _zeroed(embeddings: Sequence[nn.Embedding], device: torch.device) -> Iterator[None]:
    """Inside, their weights are zeros that take no memory."""
    weights = [embedding._parameters["weight"] for embedding in embeddings]
    for embedding in embeddings:
        zeros = torch.zeros(1, device=device).expand(embedding.weight.shape)
        embedding._parameters["weight"] = nn.Parameter(zeros, requires_grad=False)
    try:
        yield
    finally:
        for embedding, weight in zip(embeddings, weights, strict=True):
            embedding._parameters["weight"] = weight


@contextlib.contextmanager
def _replaced(forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward


def _nothing(module: nn.Module, asking: Callable[[nn.Module], None]) -> Callable[..., torch.Tensor]:
    def forward(given: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        asking(module)
        if isinstance(module, nn.Embedding):
            return given[..., None].float().repeat_interleave(module.embedding_dim, -1)
        if isinstance(module, nn.Linear | Conv1D):
            return given[..., :1].repeat_interleave(_outputs(module), -1)
        return given

    return forward


def _outputs(linear: nn.Linear | Conv1D) -> int:
    return int(linear.out_features if isinstance(linear, nn.Linear) else linear.nf)
