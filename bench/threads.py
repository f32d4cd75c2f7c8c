"""What OpenMP's waiting and its threads cost on this machine as it is: products as wide as models from tiny to 8B.

    OMP_WAIT_POLICY=passive python bench/threads.py 1 2

Says the load average too, without which the figures mean nothing.
"""

from __future__ import annotations

import os
import sys
import time

import torch

SIZES = ((256, 600), (512, 200), (1024, 50), (2048, 12), (4096, 4))  # width, repetitions


@torch.inference_mode()
def measure(width: int, repetitions: int) -> tuple[float, float]:
    """Seconds of the clock and of the processor for products and activations of 256 tokens."""
    rows = torch.randn(256, width)
    weights = [torch.randn(width, width) * width**-0.5 for _ in range(4)]
    clock, processor = time.monotonic(), time.process_time()
    for _ in range(repetitions):
        hidden = rows
        for weight in weights:
            hidden = torch.nn.functional.silu(hidden @ weight)
    return time.monotonic() - clock, time.process_time() - processor


def main() -> None:
    print(f"load average {os.getloadavg()[0]:.1f}, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'not set')}")
    for threads in map(int, sys.argv[1:]):
        torch.set_num_threads(threads)
        measure(256, 5)
        found = [measure(*size) for size in SIZES]
        told = ", ".join(
            f"{width}: {clock:.2f} ({processor:.2f})"
            for (width, _), (clock, processor) in zip(SIZES, found, strict=True)
        )
        print(f"{threads} threads; width: s (s of processor): {told}", flush=True)


if __name__ == "__main__":
    main()
