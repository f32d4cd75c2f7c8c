"""How fast a card copies and multiplies, measured in a second, against what cards of its kind can."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Rates", "measure_rates"]

_BYTES = 2**28
_WIDTH = 8192
_REPEATS = 5

# TF32 operations of a multiprocessor in a cycle, by compute capability: NVIDIA's tables of dense throughput.
_PER_CYCLE = {(8, 0): 1024, (8, 6): 256, (8, 9): 256, (9, 0): 2048, (10, 0): 4096, (12, 0): 256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    to_card: float  # bytes a second, from pinned memory
    from_card: float
    product: float  # operations a second of a TF32 product
    peak: float | None  # the same by the card's clock; None where its kind is not known here


def measure_rates(device: str) -> Rates:
    """device: cuda or cuda:N. Half a gigabyte of the card's memory is taken, and as much of the host's."""
    card = torch.device(device)
    host = torch.empty(_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(_BYTES, dtype=torch.uint8, device=card)
    to_card = _BYTES / _seconds(lambda: there.copy_(host, non_blocking=True), card)
    from_card = _BYTES / _seconds(lambda: host.copy_(there, non_blocking=True), card)
    matrix = torch.randn((_WIDTH, _WIDTH), device=card)
    torch.backends.cuda.matmul.allow_tf32 = True
    product = 2 * _WIDTH**3 / _seconds(lambda: matrix @ matrix, card)
    return Rates(to_card=to_card, from_card=from_card, product=product, peak=_peak(card))


def _seconds(step: Callable[[], object], card: torch.device) -> float:
    """Of one step, when it has run before."""
    step()
    torch.cuda.synchronize(card)
    start = time.monotonic()
    for _ in range(_REPEATS):
        step()
    torch.cuda.synchronize(card)
    return (time.monotonic() - start) / _REPEATS


def _peak(card: torch.device) -> float | None:
    found = torch.cuda.get_device_properties(card)
    operations = _PER_CYCLE.get((found.major, found.minor))
    clock = getattr(found, "clock_rate", 0) * 1000  # of kHz
    return operations * found.multi_processor_count * clock if operations and clock else None
