"""What rounding gains where the errors of a layer's outputs are weighed together, as those of its inputs are.

    python bench/left_factor.py [--model FOLDER] [--variants NAMES]

The loss of a layer's error E is tr(G E H E'): H from its inputs, as in GPTQ, and G from the gradients of its outputs, each
output feature alone in hubbot's solver (G diagonal). Here a layer's output features are rounded in eight groups. The errors
of a group are made good by those still to be rounded, in proportion to G, as GPTQ does with columns and H (Tseng et al. 2025,
arXiv:2505.22988, do both at once). Gradients are those of random directions at the output of the layer's own block, or of the
whole model's loss with labels drawn from its own predictions. First, by kind of layer, what share of the loss that can leave
at the least: the determinant of G's correlations, to the power of one over its rows. Then KL divergence on held-out windows
as in bench/quality.py. docs/quality.md has the tables.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from quality import DAMPING, Bench, Weights, hubbot

from hubbot.demo.train import demo_model
from hubbot.domain import Gptq
from hubbot.formats.gptq.solver import Curvature, prepare, solve
from hubbot.formats.names import parse_variant

GROUPS = 8  # of output features
LEFT_DAMPING = 0.1  # of the mean diagonal of G
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EVERY = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
ROWS = (
    ("block", ATTENTION),
    ("block", EVERY),
    ("model", ATTENTION),
    ("model", (*ATTENTION, "down_proj")),
    ("model", EVERY),
)


def left_factors(bench: Bench, *, whole: bool) -> Weights:
    """Sum of g g' over the calibration tokens, g the gradient of a layer's outputs; float32 [out, out] of every layer."""
    bench.model.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    found: Weights = {}
    outputs: Weights = {}  # of the layers, in the present batch
    ends: list[torch.Tensor] = []  # of the blocks

    def cut(_block: object, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (given[0].detach(), *given[1:])

    def note(name: str) -> Callable[..., None]:
        def hook(_module: object, _given: object, output: torch.Tensor) -> None:
            output.requires_grad_()
            output.retain_grad()
            outputs[name] = output

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in bench.linears.items()]
    if not whole:
        for block in bench.model.model.layers:
            hooks.append(block.register_forward_pre_hook(cut))
            hooks.append(block.register_forward_hook(lambda _block, _given, output: ends.append(output)))
    for batch in bench.calibration.split(16):
        ends.clear()
        logits = bench.model(input_ids=batch, use_cache=False).logits
        (_of_own_labels(logits, generator) if whole else _of_directions(ends, generator)).backward()
        for name, output in outputs.items():
            rows = output.grad.flatten(0, 1)
            found[name] = found.get(name, 0) + rows.T @ rows
    for hook in hooks:
        hook.remove()
    return found


def _of_own_labels(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    likely = logits.log_softmax(-1).flatten(0, 1)
    labels = torch.multinomial(likely.detach().exp(), 1, generator=generator)
    return likely.gather(1, labels).sum()


def _of_directions(ends: list[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    return torch.stack([(end * torch.randn(end.shape, generator=generator)).sum() for end in ends]).sum()


def least_share(left: torch.Tensor) -> float:
    """What feedback between output features leaves of the loss at the least; 1 where they do not meet."""
    deviation = left.diagonal().clamp_min(1e-30).sqrt()
    correlations = (left / deviation / deviation[:, None]).double()
    return float(torch.linalg.eigvalsh(correlations).clamp_min(1e-12).log().mean().exp())


def rounded(weight: torch.Tensor, left: torch.Tensor, curvature: Curvature, layout: Gptq) -> torch.Tensor:
    """[out, in], decoded: every group of outputs for what the groups before it have left."""
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))
    damped = (left / left.diagonal().mean()).double() + LEFT_DAMPING * torch.eye(len(weight))
    inverse = torch.linalg.inv(damped[order][:, order])  # of what is not rounded yet
    rest, done = weight[order], []
    for rows in order.chunk(GROUPS):
        wanted, rest = rest[: len(rows)], rest[len(rows) :]
        done.append(solve(wanted, curvature, layout).decode())
        own, others = inverse[: len(rows), : len(rows)], inverse[: len(rows), len(rows) :]
        answer = torch.linalg.solve(own, others)  # of the others to an error in these
        rest = rest - answer.float().T @ (wanted - done[-1])
        inverse = inverse[len(rows) :, len(rows) :] - others.T @ answer
    return torch.cat(done)[order.argsort()]


def improved(bench: Bench, plain: Weights, left: Weights, layout: Gptq, kinds: tuple[str, ...]) -> Weights:
    """The layers of some kinds rounded anew, the others as they are."""
    chosen = [name for name in plain if name.split(".")[-1] in kinds]
    anew = {
        name: rounded(bench.original[name], left[name], prepare(bench.hessians[name], layout, DAMPING), layout)
        for name in chosen
    }
    return plain | anew


def _shares(factors: dict[str, Weights]) -> None:
    print("| layers | least share, gradients of the block | of the model |\n| --- | ---: | ---: |")
    for kind in EVERY:
        means = []
        for left in factors.values():
            found = [least_share(factor) for name, factor in left.items() if name.endswith(kind)]
            means.append(f"{sum(found) / len(found):.2f}")
        print(f"| {kind} | " + " | ".join(means) + " |")


def _divergences(bench: Bench, factors: dict[str, Weights], name: str) -> None:
    layout = parse_variant(name)
    assert isinstance(layout, Gptq)
    start = time.perf_counter()
    plain = weights = hubbot(bench, layout)
    for source, kinds in (("", ()), *ROWS):
        if source:
            start = time.perf_counter()
            weights = improved(bench, plain, factors[source], layout, kinds)
        spent = time.perf_counter() - start
        print(f"| {name} | {source} | {', '.join(kinds)} | {bench.score(weights)[1]:.3e} | {spent:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--variants", default="gptq-4bit-128g")
    options = parser.parse_args()
    bench = Bench(options.model or demo_model(), None)
    factors = {"block": left_factors(bench, whole=False), "model": left_factors(bench, whole=True)}
    _shares(factors)
    print("\n| variant | gradients | layers | KL divergence | s |\n| --- | --- | --- | ---: | ---: |")
    for name in options.variants.split(","):
        _divergences(bench, factors, name)


if __name__ == "__main__":
    main()
