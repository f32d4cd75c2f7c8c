"""A checkpoint's tensors, one at a time, as everything computes with them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from hubbot.model.safetensors import Coded, TensorInfo

__all__ = ["decode", "decode_mxfp4", "read_tensor"]


def read_tensor(folder: Path, name: str, info: TensorInfo) -> torch.Tensor:
    """The tensor on the CPU with the dtype that `info` gives: as stored, decoded, or float64 rounded to float32."""
    tensor = _stored(folder, info.coded.codes if info.coded else name, info)
    if info.coded:
        tensor = _unpacked(tensor) if info.stored == "I32" else tensor
        scales = _stored(folder, info.coded.scale, info.coded.scales)
        return decode(tensor, scales, info.coded) if info.coded.block else decode_mxfp4(tensor, scales)
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


def _unpacked(codes: torch.Tensor) -> torch.Tensor:
    """int32 [rows, columns / 8] -> int8 [rows, columns]: eight codes of 4 bits each, the lowest first, -8 stored as 0."""
    each = (codes.unsqueeze(-1) >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    return (each - 8).to(torch.int8).flatten(1)


def decode_mxfp4(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """bfloat16 [experts, columns, rows] of gpt-oss' MXFP4, expert by expert.

    codes: uint8 [experts, rows, blocks, 16], two values of 4 bits (e2m1) a byte, the lower half first. scales: uint8
    [experts, rows, blocks], powers of two with a bias of 127 (OCP Microscaling Formats 1.0). All values are exact.
    """
    experts, rows, blocks, size = codes.shape
    out = torch.empty(experts, blocks * size * 2, rows, dtype=torch.bfloat16)
    for expert in range(experts):
        halves = torch.stack((codes[expert] & 15, codes[expert] >> 4), -1).flatten(-2)
        values = torch.ldexp(_E2M1[halves.int()], scales[expert].int().unsqueeze(-1) - 127)
        out[expert] = values.reshape(rows, -1).T
    return out


_E2M1 = torch.tensor([sign * value for sign in (1, -1) for value in (0, 0.5, 1, 1.5, 2, 3, 4, 6)])


def _stored(folder: Path, name: str, info: TensorInfo) -> torch.Tensor:
    # Opened anew each time and copied, which drops the mapping: a view keeps its whole file mapped, the kernel counts that
    # as memory taken, and the experts of one block are hundreds of views.
    with safe_open(folder / info.file, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor.clone()
