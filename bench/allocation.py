"""What each step of giving GGUF types to tensors by measured divergence brings, at the bytes of llama.cpp's own mixes.

    python bench/allocation.py [--model FOLDER] [Q4_K_M Q3_K_M Q2_K …]

Perplexity and mean KL divergence on held-out windows as in bench/quality.py, with the weights of all matrices, embedding and
head too, decoded from ggml's encoder with the importance matrix. Probes are measured on 24 of the calibration's windows.
docs/quality.md has the table.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from quality import LENGTH, WINDOWS, Bench

from hubbot.demo.train import demo_model
from hubbot.domain import Gguf, Source
from hubbot.formats.gguf import codec
from hubbot.formats.gguf.allocation import TYPES, allocated
from hubbot.formats.gguf.format import plan_unread
from hubbot.formats.gguf.probes import PROBE, matrices_of, rounded
from hubbot.model import read_facts
from hubbot.settings import GgufSettings

PROBED = 24  # windows
Costs = Mapping[tuple[str, str], float]  # (matrix, type) -> nats


class Probed:
    """Every matrix in every type, and the divergence of the model with that one alone rounded."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        bench.linears |= {
            "model.embed_tokens": bench.model.get_input_embeddings(),
            "lm_head": bench.model.get_output_embeddings(),
        }
        bench.original = {name: module.weight.detach().clone() for name, module in bench.linears.items()}
        self.weights = {(name, kind): self._rounded(name, kind) for name in bench.original for kind in TYPES}
        self.errors = {
            (name, kind): float((weight - bench.original[name]).square().sum())
            for (name, kind), weight in self.weights.items()
        }
        held, base = bench.evaluation, bench._base
        bench.evaluation = bench.calibration[:PROBED]
        bench._base = [bench._log_probabilities(batch) for batch in bench.evaluation.split(16)]
        self.costs = {place: bench.score({place[0]: weight})[1] for place, weight in self.weights.items()}
        bench.evaluation, bench._base = held, base

    def score(self, mix: Mapping[str, str]) -> tuple[float, float]:
        return self.bench.score({name: self.weights[name, kind] for name, kind in mix.items()})

    def _rounded(self, name: str, kind: str) -> torch.Tensor:
        hessian = self.bench.hessians.get(name)
        importance = None if hessian is None else (hessian.diagonal() / (WINDOWS * LENGTH)).numpy().copy()
        return rounded(self.bench.original[name], kind, importance)


def mixes(folder: Path, names: list[str]) -> tuple[dict[str, dict[str, str]], dict[str, Mapping[str, int]]]:
    """Mix -> matrix -> type as llama.cpp has it; and matrix -> type -> bytes."""
    source = Source(folder=str(folder), repo=None, revision=None, files={})
    variants, facts = [Gguf(type=name) for name in names], read_facts(folder)
    with tempfile.TemporaryDirectory() as work:
        plan = plan_unread(variants, source, facts, Path(work), GgufSettings(), text="", quantized_by=None)
    found: dict[str, dict[str, str]] = {}
    sizes: dict[str, Mapping[str, int]] = {}
    for name, variant in plan.variants.items():
        for matrix in matrices_of(plan.model.tensors, variant.recipe.kinds, facts.tensors):
            leaf = matrix.leaves[0].removesuffix(".weight")
            found.setdefault(name, {})[leaf] = codec.type_name(variant.recipe.kinds[matrix.tensor]).replace("q", "Q")
            sizes[leaf] = matrix.bytes
    return found, sizes


def cheapest(
    costs: Costs, sizes: Mapping[str, Mapping[str, int]], budget: int, group: Callable[[str], str] = lambda name: name
) -> dict[str, str]:
    """The mix with the least sum of costs, where the matrices of a group have one type."""
    groups = {group(name): [one for one in sizes if group(one) == group(name)] for name in sizes}
    cost = {key: {kind: sum(costs[name, kind] for name in names) for kind in TYPES} for key, names in groups.items()}
    size = {key: {kind: sum(sizes[name][kind] for name in names) for kind in TYPES} for key, names in groups.items()}
    return {name: kind for key, kind in allocated(cost, size, budget).items() for name in groups[key]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("mixes", nargs="*", default=["Q4_K_M", "Q3_K_M", "Q2_K"])
    options = parser.parse_args()
    folder = options.model or demo_model()
    found, sizes = mixes(folder, options.mixes)
    probed = Probed(Bench(folder, None))
    single = {
        place: probed.costs[place[0], PROBE] * error / probed.errors[place[0], PROBE]
        for place, error in probed.errors.items()
    }
    print(
        "| mix | types by | bytes | perplexity | KL divergence | sum of probes |\n| --- | --- | ---: | ---: | ---: | ---: |"
    )
    for name, own in found.items():
        budget = sum(sizes[matrix][kind] for matrix, kind in own.items())
        rows = {
            "llama.cpp": own,
            "squared errors of weights": cheapest(probed.errors, sizes, budget),
            "every type probed, one type for a kind of matrix": cheapest(
                probed.costs, sizes, budget, lambda one: re.sub(r"\.\d+\.", ".", one)
            ),
            "every type probed, matrix by matrix": cheapest(probed.costs, sizes, budget),
            f"{PROBE} probed, matrix by matrix": cheapest(single, sizes, budget),
        }
        for what, mix in rows.items():
            perplexity, divergence = probed.score(mix)
            size = sum(sizes[matrix][kind] for matrix, kind in mix.items())
            total = sum(probed.costs[place] for place in mix.items())
            print(f"| {name} | {what} | {size:,} | {perplexity:.4f} | {divergence:.3e} | {total:.3e} |", flush=True)


if __name__ == "__main__":
    main()
