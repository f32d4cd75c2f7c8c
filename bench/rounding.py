"""What each step of rounding into ggml's blocks by the whole Hessian brings, all linear layers in one type.

    python bench/rounding.py [--model FOLDER] [q4_K q3_K q2_K …]

Perplexity and mean KL divergence on held-out windows as in bench/quality.py, with the decoded weights of ggml's own
encoder with the importance matrix, of the columns' pass alone, and of 1, 2 and 4 sweeps of refinement after it and without it;
and the seconds that encoding took. docs/quality.md has the table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from quality import LENGTH, WINDOWS, Bench

from hubbot.demo.train import demo_model
from hubbot.formats.gguf import codec, rounding
from hubbot.formats.gguf.blocks import LAYOUTS
from hubbot.formats.gguf.refinement import refined
from hubbot.formats.gguf.state import State


def steps(weight: torch.Tensor, hessian: torch.Tensor, kind: int) -> Iterator[tuple[str, torch.Tensor, float]]:
    """(step, decoded weight, seconds) of one layer; a step goes on from the one before it."""
    rows = np.ascontiguousarray(weight.numpy())
    importance = (hessian.diagonal() / (WINDOWS * LENGTH)).numpy().copy()
    curvature, wanted = rounding.curvature_of(hessian), weight.t().contiguous()
    for passed_on in (True, False):
        start = time.perf_counter()
        state = State.of(
            LAYOUTS[kind].unpack(codec.encoded(kind, rows, importance), len(rows)), LAYOUTS[kind], hessian.device
        )
        yield "ggml with importance", state.decode().t(), time.perf_counter() - start
        if passed_on:
            rounding.round_all(wanted, state, curvature)
            yield "columns, errors passed on", state.decode().t(), time.perf_counter() - start
        for done, more in ((1, 1), (2, 1), (4, 2)):
            refined(wanted, state, curvature.hessian, more)
            name = "and" if passed_on else "refinement alone,"
            yield f"{name} {done} sweeps", state.decode().t(), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("types", nargs="*", default=["q4_K", "q3_K", "q2_K"])
    options = parser.parse_args()
    bench = Bench(options.model or demo_model(), None)
    print("| type | step | perplexity | KL divergence | s |\n| --- | --- | ---: | ---: | ---: |")
    for name in options.types:
        kind = codec.type_named(name)
        codec.prepare(kind)
        made: dict[str, dict[str, torch.Tensor]] = {}
        spent: dict[str, float] = {}
        for layer, weight in bench.original.items():
            for step, decoded, seconds in steps(weight, bench.hessians[layer], kind):
                made.setdefault(step, {})[layer] = decoded.contiguous()
                spent[step] = spent.get(step, 0) + seconds
        for step, weights in made.items():
            perplexity, divergence = bench.score(weights)
            print(f"| {name} | {step} | {perplexity:.4f} | {divergence:.3e} | {spent[step]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
