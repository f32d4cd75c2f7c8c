"""Codes in 32-bit words."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbot.formats.gptq.packing import pack_codes, pack_zeros, packed_rows, unpack_codes, unpack_zeros

BITS = st.sampled_from([2, 3, 4, 8])


def _codes(bits: int, rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, columns), generator=generator).to(torch.uint8)


@settings(deadline=None)
@given(bits=BITS, units=st.integers(1, 9), columns=st.integers(1, 70), seed=st.integers(0, 2**32))
def test_unpacking_undoes_packing_for_all_bits_and_odd_widths(bits, units, columns, seed):
    codes = _codes(bits, 32 * units, columns, seed)
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.int32
    assert packed.shape == (packed_rows(32 * units, bits), columns)
    assert torch.equal(unpack_codes(packed, bits), codes)


@settings(deadline=None)
@given(bits=BITS, groups=st.integers(1, 9), units=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_zero_points_are_packed_along_the_outputs(bits, groups, units, seed):
    zeros = _codes(bits, groups, 32 * units, seed)
    packed = pack_zeros(zeros, bits)
    assert packed.shape == (groups, units * bits)
    assert torch.equal(unpack_zeros(packed, bits), zeros)


@settings(deadline=None)
@given(bits=BITS, seed=st.integers(0, 2**32))
def test_a_columns_words_are_its_codes_as_one_string_of_bits(bits, seed):
    codes = _codes(bits, 64, 1, seed)
    string = sum(int(code) << (bits * index) for index, code in enumerate(codes[:, 0]))
    words = [(string >> (32 * word)) & 0xFFFFFFFF for word in range(2 * bits)]
    assert [int(word) & 0xFFFFFFFF for word in pack_codes(codes, bits)[:, 0]] == words
