"""Seconds that the probes of one block of Llama 3 8B's shape take: every matrix in every type, and each probe decoded.

    python bench/probes.py --device cuda:0

Weights are random. On a card the same is done by the cores too, each with ggml's encoders; the errors and the decoded weights have to
agree, or the script stops.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from solver import LAYERS

from hubbot.formats.gguf.allocation import TYPES, Matrix
from hubbot.formats.gguf.probes import Probes
from hubbot.formats.protocol import InputStatistics
from hubbot.model.parts import Part, PartKind


def probed(device: torch.device) -> tuple[float, float, dict[str, dict[str, float]], list[torch.Tensor]]:
    """Seconds of all errors and of all decoded weights; the errors; the decoded weights, on the CPU."""
    weights, statistics, groups = {}, {}, {}
    for name, (rows, columns) in LAYERS.items():
        generator = torch.Generator().manual_seed(rows)
        weights[name] = (0.05 * torch.randn(rows, columns, generator=generator)).to(device)
        squares = torch.rand(columns, generator=generator).to(device)
        statistics[name] = InputStatistics(squares=squares, hessian=None, tokens=1)
        groups[name] = (Matrix(leaves=(name,), tensor=name, bytes=dict.fromkeys(TYPES, 0)),)
    part = Part(kind=PartKind.BLOCK, index=0, tensors=tuple(weights))
    with tempfile.TemporaryDirectory() as folder:
        probes = Probes(groups, Path(folder))
        start = time.perf_counter()
        found = probes.encode(part, weights, statistics)
        middle = time.perf_counter()
        decoded = [found[name][name].decode() for name in weights]
        moved = [each.cpu() for each in decoded]
        return middle - start, time.perf_counter() - middle, probes.errors[part.name], moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    asked = torch.device(parser.parse_args().device)
    print("| device | every type's errors, s | the probes decoded, s |\n| --- | ---: | ---: |")
    found = []
    for device, what in [(asked, " with its programs compiled"), (asked, "")] if asked.type == "cuda" else []:
        found.append(probed(device))
        print(f"| {torch.cuda.get_device_name(device)}{what} | {found[-1][0]:.2f} | {found[-1][1]:.2f} |", flush=True)
    found.append(probed(torch.device("cpu")))
    print(f"| CPU | {found[-1][0]:.2f} | {found[-1][1]:.2f} |", flush=True)
    for _, _, errors, decoded in found[:-1]:
        for name, kinds in found[-1][2].items():
            for kind, error in kinds.items():
                assert abs(errors[name][kind] / error - 1) < 1e-5, (name, kind)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(decoded, found[-1][3], strict=True))


if __name__ == "__main__":
    main()
