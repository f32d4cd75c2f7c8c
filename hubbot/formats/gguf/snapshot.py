"""Single tensors of a snapshot, for the few that no part of the sweep brings along."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from hubbot.formats.gguf.converter import TensorFact

__all__ = ["Snapshot"]


class _Facts(Protocol):
    @property
    def folder(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, TensorFact]: ...


class Snapshot:
    """Reads tensors of a checkpoint's safetensors files by name."""

    def __init__(self, facts: _Facts) -> None:
        self._facts = facts

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored, float64 rounded to float32."""
        fact: Any = self._facts.tensors[name]
        with safe_open(Path(self._facts.folder) / fact.file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor.float() if tensor.dtype == torch.float64 else tensor
