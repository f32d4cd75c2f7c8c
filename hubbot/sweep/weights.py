"""Reading a checkpoint's tensors by name, lazily, from its safetensors files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from hubbot.model import TensorInfo
from hubbot.model.weights import read_tensor

__all__ = ["CheckpointWeights"]


class CheckpointWeights(Mapping[str, torch.Tensor]):
    """Some tensors of a checkpoint: each is read when it is asked for and not kept.

    names: checkpoint names to offer. tensors: checkpoint name -> where it lies in `folder`.
    Values are those of `read_tensor`.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, TensorInfo], names: tuple[str, ...]) -> None:
        self._folder = folder
        self._tensors = tensors
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return read_tensor(self._folder, name, self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
