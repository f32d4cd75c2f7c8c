"""What OpenMP's waiting and its threads cost on this machine as it is: products of a narrow and of a wide model.

    OMP_WAIT_POLICY=passive python bench/threads.py 2

Says the load average too, without which the figures mean nothing.
"""

from __future__ import annotations

import os
import sys
import time

import torch

SIZES = ((256, 150), (2048, 4))  # width, repetitions


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
    torch.set_num_threads(int(sys.argv[1]))
    print(f"load average {os.getloadavg()[0]:.1f}, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'not set')}")
    for width, repetitions in SIZES:
        clock, processor = measure(width, repetitions)
        print(f"{sys.argv[1]} threads, width {width}: {clock:.2f} s, {processor:.2f} s of processor")


if __name__ == "__main__":
    main()
