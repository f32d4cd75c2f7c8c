"""Seconds that rounding into ggml's blocks takes for the layers of one block of Llama 3 8B: plain, and by the whole Hessian.

    python bench/blocks.py --device cuda:0 q4_K q3_K q2_K

Plain is ggml's own encoder with the importance matrix on all cores, which rounding by the Hessian begins with. Weights and
inputs are random as in bench/solver.py; of the loss that is lowered the table has the share that is left.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from solver import LAYERS, hessian

from hubbot.formats.gguf import codec
from hubbot.formats.gguf.blocks import LAYOUTS
from hubbot.formats.gguf.rounding import _ggmls, curvature_of, round_rows


def lost(rows: np.ndarray, data: np.ndarray, kind: int, H: torch.Tensor) -> float:
    decoded = np.empty_like(rows)
    codec.decode_rows(kind, data, decoded)
    difference = torch.from_numpy(rows - decoded).to(H.device)
    return float(((difference @ H) * difference).sum(dtype=torch.float64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("types", nargs="*", default=["q4_K", "q3_K", "q2_K"])
    asked = parser.parse_args()
    print("| layer | type | plain s | by the Hessian s | share of the loss |\n|---|---|---:|---:|---:|")
    for name, (out, size) in LAYERS.items():
        H = hessian(size, asked.device)
        rows = (0.05 * torch.randn(out, size, generator=torch.Generator().manual_seed(out))).numpy()
        importance = (H.diagonal() / (2 * size)).cpu().numpy().copy()
        curvature = curvature_of(H)
        for kind in map(codec.type_named, asked.types):
            codec.prepare(kind)
            round_rows(rows[:64], kind, curvature, importance)  # compiles the kernels
            start = time.perf_counter()
            blocks = _ggmls(rows, kind, LAYOUTS[kind], importance)
            middle = time.perf_counter()
            data = round_rows(rows, kind, curvature, importance)
            spent = time.perf_counter() - middle
            share = lost(rows, data, kind, H) / lost(rows, LAYOUTS[kind].pack(blocks), kind, H)
            print(
                f"| {name}: {out} x {size} | {codec.type_name(kind)} | {middle - start:.2f} | {spent:.2f} | {share:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
