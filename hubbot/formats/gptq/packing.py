"""Codes of 2, 3, 4 or 8 bits in 32-bit words, laid out as the `gptq` checkpoint format wants them.

Thirty-two codes fill exactly `bits` words: their bits follow one another, lowest bit of the first
code first, across word boundaries (with 3 bits, code 10 lies in words 0 and 1, code 21 in 1 and 2).
`qweight` packs along the inputs, `qzeros` along the outputs.
"""

from __future__ import annotations

import torch

__all__ = ["pack_codes", "pack_zeros", "packed_rows", "unpack_codes", "unpack_zeros"]

CODES_PER_UNIT = 32  # codes that end on a word boundary whatever their width


def packed_rows(codes: int, bits: int) -> int:
    """How many 32-bit words hold that many codes; a multiple of 32 of them."""
    return codes * bits // CODES_PER_UNIT


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [n, m] codes below 2**bits, n a multiple of 32 -> int32 [n * bits / 32, m], packed down the columns."""
    if 32 % bits == 0:  # no code crosses a word's end
        parted = codes.reshape(-1, 32 // bits, codes.shape[1]).to(torch.int32) << _shifts(bits, codes.device)
        together: torch.Tensor = parted.sum(1, dtype=torch.int32)
        return together
    units = codes.reshape(-1, CODES_PER_UNIT, codes.shape[1])
    words = torch.zeros(units.shape[0], bits, codes.shape[1], dtype=torch.int64, device=codes.device)
    for index in range(CODES_PER_UNIT):
        code = units[:, index].to(torch.int64)
        word, shift = divmod(index * bits, 32)
        words[:, word] |= code << shift
        if shift + bits > 32:
            words[:, word + 1] |= code >> (32 - shift)
    words &= 0xFFFFFFFF
    signed = torch.where(words >= 2**31, words - 2**32, words)
    return signed.to(torch.int32).reshape(-1, codes.shape[1])


def unpack_codes(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [n * bits / 32, m] -> uint8 [n, m]; undoes pack_codes."""
    if 32 % bits == 0:
        parted = (packed[:, None] >> _shifts(bits, packed.device)) & (2**bits - 1)
        codes: torch.Tensor = parted.to(torch.uint8).flatten(0, 1)
        return codes
    words = packed.reshape(-1, bits, packed.shape[1]).to(torch.int64) & 0xFFFFFFFF
    apart = []
    for index in range(CODES_PER_UNIT):
        word, shift = divmod(index * bits, 32)
        code = words[:, word] >> shift
        if shift + bits > 32:
            code = code | (words[:, word + 1] << (32 - shift))
        apart.append((code & (2**bits - 1)).to(torch.uint8))
    return torch.stack(apart, dim=1).reshape(-1, packed.shape[1])


def _shifts(bits: int, device: torch.device) -> torch.Tensor:
    """Where each code of a word begins, int32 [codes, 1]."""
    return torch.arange(0, 32, bits, dtype=torch.int32, device=device)[:, None]


def pack_zeros(zeros: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [groups, out] -> int32 [groups, out * bits / 32], packed along the rows."""
    return pack_codes(zeros.t().contiguous(), bits).t().contiguous()


def unpack_zeros(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [groups, out * bits / 32] -> uint8 [groups, out]; undoes pack_zeros."""
    return unpack_codes(packed.t().contiguous(), bits).t().contiguous()
