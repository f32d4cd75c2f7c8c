"""Reading a checkpoint's tensors by name, lazily, from its safetensors files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

__all__ = ["CheckpointWeights"]


class CheckpointWeights(Mapping[str, torch.Tensor]):
    """Some tensors of a checkpoint: each is read when it is asked for and not kept.

    names: checkpoint names to offer. files: checkpoint name -> safetensors file in `folder`.
    Values have the stored dtype, float64 rounded to float32, and lie on the CPU.
    """

    def __init__(self, folder: Path, files: Mapping[str, str], names: tuple[str, ...]) -> None:
        self._folder = folder
        self._files = files
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        # Opened anew each time: closing drops the mapping, so that pages of one block do not pile up.
        with safe_open(self._folder / self._files[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor.float() if tensor.dtype == torch.float64 else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
