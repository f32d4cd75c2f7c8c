"""A checkpoint's tensors, one at a time, as everything computes with them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from hubbot.model.safetensors import Coded, TensorInfo

__all__ = ["decode", "read_tensor"]


def read_tensor(folder: Path, name: str, info: TensorInfo) -> torch.Tensor:
    """The tensor on the CPU with the dtype that `info` gives: as stored, decoded, or float64 rounded to float32."""
    tensor = _stored(folder, name, info)
    if info.coded:
        return decode(tensor, _stored(folder, info.coded.scale, info.coded.scales), info.coded)
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def decode(codes: torch.Tensor, scales: torch.Tensor, coded: Coded) -> torch.Tensor:
    """The bfloat16 weights of a quantized tensor: products of codes and scales in float32, then rounded.

    codes: any dtype that float32 holds, [..., rows, columns]. scales: one, or one a block of the last dimensions.
    As transformers' Fp8Dequantize and llama.cpp's converter compute them, which rounds where its file is bfloat16.
    """
    factors = scales.float()
    if factors.numel() == 1:
        return (codes.float() * factors.reshape(())).bfloat16()
    for back, size in enumerate(reversed(coded.block), 1):
        factors = factors.repeat_interleave(size, -back).narrow(-back, 0, codes.shape[-back])
    return (codes.float() * factors).bfloat16()


def _stored(folder: Path, name: str, info: TensorInfo) -> torch.Tensor:
    # Opened anew each time: closing drops the mapping, so that pages of one block do not pile up.
    with safe_open(folder / info.file, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor
