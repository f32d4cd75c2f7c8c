"""A plugin of vLLM for the tests: its CPU kernels for 4-bit weights, in plain torch, where the CPU has no AVX-512 or no AMX.

vLLM's build for CPUs has the kernel of linear layers for AVX-512 alone, that of experts for AMX alone, and the latter not for
routing by sigmoid, though it is given what the router chose. All else is vLLM's own: what it accepts, how it loads,
splits, fuses and routes. On a CPU that has both nothing is replaced.
"""

import torch


def register() -> None:
    from vllm import _custom_ops

    if not hasattr(torch.ops._C, "cpu_gemm_wna16"):
        _custom_ops.cpu_gemm_wna16 = _product
    if not torch.cpu._is_amx_tile_supported():
        _replace_experts()


def _replace_experts():
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe

    kernel = cpu_moe.CPUExpertsInt4
    kernel._supports_current_device = staticmethod(lambda: True)
    kernel._supports_routing_method = staticmethod(lambda *_: True)
    cpu_moe.convert_weight_packed_scale_zp = lambda weight, zeros, scales, _: (weight, zeros, scales)
    cpu_moe.fused_experts_cpu = _experts


def _experts(out, rows, w1, w2, shares, chosen, _method, scale1, scale2, zero1, zero2, *_):
    """w1: int32 [experts, in / 8, 2 * inside], gates first; w2: int32 [experts, inside / 8, out]; shares, chosen: [rows, k]."""
    found = torch.zeros(out.shape, dtype=torch.float32)
    for expert in chosen.unique().tolist():
        row, place = (chosen == expert).nonzero(as_tuple=True)
        gate, up = (rows[row].float() @ _upright(w1[expert], scale1[expert], zero1[expert])).chunk(2, -1)
        down = (torch.nn.functional.silu(gate) * up) @ _upright(w2[expert], scale2[expert], zero2[expert])
        found.index_add_(0, row, down * shares[row, place, None].float())
    out.copy_(found)


def _upright(words, scales, zeros):
    """int32 [in / 8, out], [groups, out] and, one too low, int32 [groups, out / 8] -> float32 [in, out]."""
    codes = _codes(words).transpose(1, 2).reshape(-1, words.shape[1])
    spread = len(codes) // len(scales)
    zero = _codes(zeros).reshape(scales.shape) + 1
    return (codes - zero.repeat_interleave(spread, 0)) * scales.float().repeat_interleave(spread, 0)


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
