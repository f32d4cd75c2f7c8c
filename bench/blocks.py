"""Time that rounding into ggml's blocks by the whole Hessian takes, beside plain encoding with the importance matrix.

    python bench/blocks.py --device cuda:0 q4_K q3_K q2_K          seconds, layers of one block of Llama 3 8B
    python bench/blocks.py --device cpu --threads 1                 nanoseconds a weight, 1,024 rows of 1,024 to 4,096 columns, all types

On a card plain is hubbot's encoder on all cores, which rounding by the Hessian begins with. On the CPU ggml's own function stands
beside it, which is what llama-quantize calls, and time is the processor's, of all threads: the machine may be shared. Weights and inputs are
random as in bench/solver.py; of the loss that is lowered the table has the share that is left. The Hessian is factored once for all
types and layers with its inputs; how long that took stands by itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from solver import LAYERS, hessian

from hubbot import llamacpp
from hubbot.formats.gguf import codec, descent, rounding
from hubbot.formats.gguf.blocks import LAYOUTS
from hubbot.formats.gguf.rounding import Curvature, _ggmls, curvature_of, round_rows

ROWS, WIDTHS = 1024, (1024, 2048, 4096)


def lost(rows: np.ndarray, data: np.ndarray, kind: int, H: torch.Tensor) -> float:
    decoded = np.empty_like(rows)
    codec.decode_rows(kind, data, decoded)
    difference = torch.from_numpy(rows - decoded).to(H.device)
    return float(((difference @ H) * difference).sum(dtype=torch.float64))


def layer(out: int, size: int, device: str) -> tuple[np.ndarray, torch.Tensor, np.ndarray]:
    """Weights, the Hessian of the inputs, and the importance."""
    H = hessian(size, device)
    rows = (0.05 * torch.randn(out, size, generator=torch.Generator().manual_seed(out))).numpy()
    return rows, H, (H.diagonal() / (2 * size)).cpu().numpy().copy()


def on_a_card(device: str, kinds: list[int]) -> None:
    print("| layer | type | plain s | by the Hessian s | share of the loss |\n|---|---|---:|---:|---:|")
    for name, (out, size) in LAYERS.items():
        rows, H, importance = layer(out, size, device)
        curvature, here = curvature_of(H), torch.from_numpy(rows).to(device)
        for kind in kinds:
            codec.prepare(kind)
            round_rows(here[:64], kind, curvature, importance)  # compiles the kernels
            start = time.perf_counter()
            blocks = _ggmls(torch.from_numpy(rows), kind, LAYOUTS[kind], importance)
            middle = time.perf_counter()
            data = round_rows(here, kind, curvature, importance)
            spent = time.perf_counter() - middle
            share = lost(rows, data, kind, H) / lost(rows, LAYOUTS[kind].pack(blocks), kind, H)
            print(
                f"| {name}: {out} x {size} | {codec.type_name(kind)} | {middle - start:.2f} | {spent:.2f} | {share:.3f} |",
                flush=True,
            )


def spent(call: Callable[[], object], times: int = 3) -> tuple[float, float]:
    """Seconds of the processor and by the clock, of the best of a few calls."""
    found = []
    for _ in range(times):
        start, clock = time.process_time(), time.perf_counter()
        call()
        found.append((time.process_time() - start, time.perf_counter() - clock))
    return min(found)


def on_the_cpu(threads: int, kinds: list[int]) -> None:
    torch.set_num_threads(threads)
    print("| columns | type | ggml | plain | by the Hessian | over ggml | by the clock | share of the loss |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    with patch.object(rounding, "cores", lambda: threads), patch.object(descent, "cores", lambda: threads):
        for size in WIDTHS:
            rows, H, importance = layer(ROWS, size, "cpu")
            made: list[Curvature] = []
            factored, _ = spent(lambda H=H, made=made: made.append(curvature_of(H)), 1)
            for kind in kinds:
                of_type(rows, H, importance, made[0], kind)
            print(f"{size}: the Hessian was factored in {factored:.2f} s", flush=True)


def of_type(rows: np.ndarray, H: torch.Tensor, importance: np.ndarray, curvature: Curvature, kind: int) -> None:
    codec.prepare(kind)
    data = np.empty(len(rows) * codec.row_bytes(kind, rows.shape[1]), np.uint8)
    given = (kind, rows.ctypes.data, data.ctypes.data, 0, *rows.shape, importance.ctypes.data)
    ggmls, _ = spent(lambda: llamacpp.ggml().ggml_quantize_chunk(*given))
    plain, _ = spent(lambda: codec.encode_rows(kind, rows, data, importance))
    here = torch.from_numpy(rows)
    ours, clock = spent(lambda: round_rows(here, kind, curvature, importance))
    share = lost(rows, round_rows(here, kind, curvature, importance), kind, H) / lost(rows, data, kind, H)
    ggml, own, whole, wall = (seconds * 1e9 / rows.size for seconds in (ggmls, plain, ours, clock))
    print(
        f"| {rows.shape[1]} | {codec.type_name(kind)} | {ggml:.0f} | {own:.0f} | {whole:.0f} | {ours / ggmls:.1f} | {wall:.0f} | {share:.4f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("types", nargs="*")
    asked = parser.parse_args()
    if asked.device == "cpu":
        on_the_cpu(asked.threads, [codec.type_named(name) for name in asked.types] or list(LAYOUTS))
    else:
        on_a_card(asked.device, [codec.type_named(name) for name in asked.types or ("q4_K", "q3_K", "q2_K")])


if __name__ == "__main__":
    main()
