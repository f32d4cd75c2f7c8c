"""A plugin of vLLM for the tests: its CPU kernel for 4-bit weights, in plain torch, where the CPU has no AVX-512.

vLLM's build for CPUs has this kernel for AVX-512 alone. All else is vLLM's own: what it accepts, how it loads,
splits, fuses and repacks. On a CPU with AVX-512 nothing is replaced.
"""

import torch


def register() -> None:
    from vllm import _custom_ops

    if not hasattr(torch.ops._C, "cpu_gemm_wna16"):
        _custom_ops.cpu_gemm_wna16 = _product


def _product(input, q_weight, scales, zeros, bias, pack_factor, isa_hint):  # noqa: A002 - vLLM's own names
    """q_weight: int32 [out / 16, in * 2], 16 outputs a block, 8 codes a word. scales: [groups, out]. zeros: int32 [groups, out / 8]."""
    groups, outputs = scales.shape
    codes = _codes(q_weight.reshape(outputs // 16, -1, 2)).permute(1, 0, 2, 3).reshape(-1, outputs)
    zero = 8 if zeros is None else _codes(zeros).reshape(groups, outputs).repeat_interleave(len(codes) // groups, 0)
    weight = (codes - zero) * scales.float().repeat_interleave(len(codes) // groups, 0)
    found = input.float() @ weight
    return (found if bias is None else found + bias.float()).to(input.dtype)


def _codes(words):
    """int32 [..., n] -> float32 [..., n, 8], the lowest four bits first."""
    return (words[..., None] >> torch.arange(0, 32, 4) & 15).float()
