"""What a block computes with on a card is what torch computes by itself."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hubbot.sweep.attention import FusedAttention, HalfProducts

on_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def _heads(count: int, device: str = "cpu") -> torch.Tensor:
    return torch.randn((1, count, 24, 16), generator=torch.Generator().manual_seed(count)).to(device)


def test_grouped_queries_get_repeated_keys_and_the_same_answer() -> None:
    query, key, value = _heads(8), _heads(2), _heads(2).flip(-1)
    wanted = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    seen: list[tuple[int, ...]] = []
    with _Watched(seen), FusedAttention():
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(found, wanted)
    assert seen == [(1, 8, 24, 16)]  # of the key, where torch has a fused kernel


class _Watched(torch.overrides.TorchFunctionMode):
    def __init__(self, seen: list[tuple[int, ...]]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.scaled_dot_product_attention:
            self._seen.append(tuple(args[1].shape))
            assert "enable_gqa" not in (kwargs or {})
        return func(*args, **(kwargs or {}))


@on_a_card
@pytest.mark.parametrize("largest", [1.0, 1e6])
def test_halves_are_as_good_as_tf32_and_are_not_taken_where_a_number_is_too_large(largest: float) -> None:
    x, weight = torch.randn(256, 512, device="cuda"), torch.randn(384, 512, device="cuda")
    x[0, 0] = largest
    wanted = x.double() @ weight.double().T
    with HalfProducts():
        found = functional.linear(x, weight)
    error = (found - wanted).norm() / wanted.norm()
    assert error < 1e-3
    assert (error > 1e-6) == (largest < 60_000)  # float32's own product where it is too large


def test_a_cpu_computes_as_before() -> None:
    x, weight = torch.randn(8, 16), torch.randn(4, 16)
    with HalfProducts():
        assert torch.equal(functional.linear(x, weight), x @ weight.T)
