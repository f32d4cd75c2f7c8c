"""A checkpoint's tensors, one at a time, as everything computes with them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from hubbot.model.safetensors import TensorInfo

__all__ = ["read_tensor"]


def read_tensor(folder: Path, name: str, info: TensorInfo) -> torch.Tensor:
    """The tensor on the CPU with the dtype that `info` gives: as stored, float64 rounded to float32."""
    # Opened anew each time: closing drops the mapping, so that pages of one block do not pile up.
    with safe_open(folder / info.file, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor.float() if tensor.dtype == torch.float64 else tensor
