"""Seconds that the GPTQ solver takes for the layers of one block of Llama 3 8B, by kernels and by plain torch.

    python bench/solver.py --device cuda:0 --variants gptq-4bit-128g,gptq-4bit-32g-actorder

Weights and inputs are random; the inputs' features depend on one another, as they do in a model. Both ways end with
about the same error; the script stops where they do not.
"""

from __future__ import annotations

import argparse
import time
from unittest.mock import patch

import torch

from hubbot.domain import Gptq
from hubbot.formats.gptq import columns, groups
from hubbot.formats.gptq.solver import Curvature, Solution, prepare, solve
from hubbot.formats.names import parse_variants

LAYERS = {"q, o": (4096, 4096), "k, v": (1024, 4096), "gate, up": (14336, 4096), "down": (4096, 14336)}


def hessian(size: int, device: str) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(size)
    mix = torch.randn(size, size, generator=generator, device=device) / size**0.5 + torch.eye(size, device=device)
    inputs = torch.randn(2 * size, size, generator=generator, device=device) @ mix
    return inputs.T @ inputs


def timed(weight: torch.Tensor, curvature: Curvature, layout: Gptq) -> tuple[float, Solution]:
    start = time.perf_counter()
    found = solve(weight, curvature, layout)  # its error is a number on the host: the device is done
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--variants", default="gptq-4bit-128g,gptq-4bit-32g-actorder,gptq-3bit-128g-asym")
    asked = parser.parse_args()
    print(torch.cuda.get_device_name(asked.device) if asked.device != "cpu" else "CPU", torch.__version__)
    print("| layer | variant | factorization s | kernels s | torch s |\n|---|---|---:|---:|---:|")
    for name, (rows, size) in LAYERS.items():
        H = hessian(size, asked.device)
        weight = 0.05 * torch.randn(rows, size, device=asked.device)
        for layout in parse_variants(asked.variants):
            assert isinstance(layout, Gptq)
            start = time.perf_counter()
            curvature = prepare(H, layout, 0.01)
            torch.cuda.synchronize() if asked.device != "cpu" else None
            factored = time.perf_counter() - start
            timed(weight[:64], curvature, layout)  # compiles the kernels
            by_kernels, one = timed(weight, curvature, layout)
            with (
                patch.object(columns, "kernels_on", return_value=None),
                patch.object(groups, "kernels_on", return_value=None),
            ):
                by_torch, other = timed(weight, curvature, layout)
            print(f"| {name} | {layout.name} | {factored:.2f} | {by_kernels:.2f} | {by_torch:.2f} |", flush=True)
            if abs(one.error - other.error) > 0.01 * other.error:
                raise SystemExit(f"{layout.name}: the error is {one.error:g} by kernels and {other.error:g} by torch")


if __name__ == "__main__":
    main()
