"""Single tensors of a snapshot, for the few that no part of the sweep brings along."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import torch

from hubbot.formats.gguf.converter import TensorFact
from hubbot.model import TensorInfo
from hubbot.model.weights import read_tensor

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
        """The tensor as everything computes with it."""
        return read_tensor(Path(self._facts.folder), name, cast("TensorInfo", self._facts.tensors[name]))
