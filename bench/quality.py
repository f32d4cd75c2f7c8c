"""Quality of GPTQ at equal size: round-to-nearest, GPTQModel and hubbot, on the same calibration windows.

    python bench/quality.py [--model FOLDER] [--variants NAMES] [--experiments]

The model is the demo model, or a folder with `calibration.jsonl` and `evaluation.jsonl` ({"text": …} a line)
next to it. Every candidate's decoded weights are put into one plain transformers model in float32, which
gives perplexity and mean KL divergence from the original on the same held-out windows. Solvers are used
directly with hooks, not through the sweep. docs/quality.md holds the tables that this prints.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hubbot.demo.train import demo_model
from hubbot.domain import Gptq
from hubbot.formats.gptq.checkpoint import GptqTensor
from hubbot.formats.gptq.columns import nearest_code
from hubbot.formats.gptq.solver import Curvature, prepare, solve, solve_weighed
from hubbot.formats.names import parse_variant
from hubbot.formats.protocol import Band
from hubbot.model import part_layout, read_facts
from hubbot.settings import GptqSettings
from hubbot.sweep.blocks import BlockModel
from hubbot.sweep.gradients import measure_gradients
from hubbot.sweep.group import ALONE
from hubbot.sweep.kept import bands_of
from hubbot.sweep.weights import CheckpointWeights
from hubbot.sweep.windows import Windows

VARIANTS = ("gptq-4bit-128g", "gptq-4bit-32g-actorder", "gptq-3bit-128g", "gptq-8bit-128g", "gptq-2bit-64g")
WINDOWS, LENGTH = 128, 128  # calibration
EVALUATED = 96  # windows of the same length
DAMPING = GptqSettings().damping
Weights = dict[str, torch.Tensor]  # module name -> float32 [out, in]


class _Reached(Exception):
    pass


class Bench:
    """The model, its windows, and what the original makes of the evaluation windows."""

    def __init__(self, folder: Path, keep: Path | None) -> None:
        self.folder, self.keep = folder, keep
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.calibration = self._windows("calibration.jsonl", WINDOWS)
        self.evaluation = self._windows("evaluation.jsonl", EVALUATED)
        self.linears = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not self.model.get_output_embeddings()
        }
        self.original: Weights = {name: module.weight.detach().clone() for name, module in self.linears.items()}
        self._base = [self._log_probabilities(batch) for batch in self.evaluation.split(16)]
        self.hessians = self.collect(list(self.linears))

    @cached_property
    def bands(self) -> dict[str, tuple[Band, ...]]:
        """Layer -> what errors of its outputs do to the model's loss, by the sweep's own pass over the calibration windows."""
        facts = read_facts(self.folder)
        parts = part_layout(facts)
        windows = Windows(tokens=self.calibration, first_target=(1,) * len(self.calibration))
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as work:
            kept = Path(work, "gradients")
            measure_gradients(
                BlockModel(self.folder, parts, torch.device("cpu")),
                parts,
                lambda part: CheckpointWeights(self.folder, facts.tensors, part.tensors),
                windows,
                kept,
                ALONE,
            )
            print(f"gradients: {time.perf_counter() - start:.0f} s", file=sys.stderr)
            return {name: own for part in parts for name, own in bands_of(kept, part, torch.device("cpu")).items()}

    def _windows(self, file: str, count: int) -> torch.Tensor:
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        ids: list[int] = []
        with (self.folder / file).open(encoding="utf-8") as lines:
            for line in lines:
                ids += tokenizer(json.loads(line)["text"])["input_ids"]
        found = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
        chosen = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:count]
        return found[chosen]

    @torch.inference_mode()
    def _log_probabilities(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=batch).logits.log_softmax(-1)

    @torch.inference_mode()
    def collect(self, names: list[str]) -> Weights:
        """Hessians of some layers with the weights that the model has now."""
        found: Weights = {}

        def note(name: str) -> Callable[..., None]:
            def hook(_module: object, args: tuple[torch.Tensor, ...]) -> None:
                rows = args[0].reshape(-1, args[0].shape[-1])
                found[name] = found.get(name, 0) + rows.T @ rows

            return hook

        hooks = [self.linears[name].register_forward_pre_hook(note(name)) for name in names]
        for batch in self.calibration.split(16):
            self.model(input_ids=batch)
        for hook in hooks:
            hook.remove()
        return found

    @torch.inference_mode()
    def behind(self, rounded: Weights, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over a layer's inputs x' behind some rounded layers: of x' x'', and of (x - x') x'' with the original's x."""
        hessian = drift = torch.zeros(())
        for batch in self.calibration.split(16):
            before, after = self._inputs({}, name, batch), self._inputs(rounded, name, batch)
            hessian, drift = hessian + after.T @ after, drift + (before - after).T @ after
        self.install(self.original)
        return hessian, drift

    def _inputs(self, weights: Weights, name: str, batch: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def stop(_module: object, args: tuple[torch.Tensor, ...]) -> None:
            seen.append(args[0].reshape(-1, args[0].shape[-1]))
            raise _Reached

        self.install(weights)
        hook = self.linears[name].register_forward_pre_hook(stop)
        with contextlib.suppress(_Reached):
            self.model(input_ids=batch)
        hook.remove()
        return seen[0]

    def install(self, weights: Weights) -> None:
        for name, module in self.linears.items():
            module.weight.data = weights.get(name, self.original[name])

    @torch.inference_mode()
    def score(self, weights: Weights) -> tuple[float, float]:
        """Perplexity and mean divergence in nats."""
        self.install(weights)
        divergence = nll = 0.0
        for batch, p in zip(self.evaluation.split(16), self._base, strict=True):
            q = self._log_probabilities(batch)
            divergence += float((p.exp() * (p - q)).sum(dtype=torch.float64))
            nll -= float(q[:, :-1].gather(-1, batch[:, 1:, None]).sum(dtype=torch.float64))
        self.install(self.original)
        count = self.evaluation.numel()
        return math.exp(nll / (count - len(self.evaluation))), divergence / count


def nearest(bench: Bench, layout: Gptq) -> Weights:
    """Round to nearest, the scale of a group spanning its largest weight."""
    found = {}
    for name, weight in bench.original.items():
        groups = weight.view(weight.shape[0], -1, layout.group_size)
        scale = (groups.abs().amax(-1, keepdim=True) * 2 / (2**layout.bits - 1)).half().float()
        zero = torch.full_like(scale, 2 ** (layout.bits - 1))
        rounded = scale * (nearest_code(groups, scale, zero, layout.bits) - zero)
        found[name] = rounded.reshape(weight.shape)
    return found


def behind_rounded(bench: Bench, layout: Gptq) -> Weights:
    """As hubbot, but each layer is rounded for the inputs that the rounded layers before it in its block leave."""
    found: Weights = {}
    for block in _blocks(bench):
        rounded: Weights = {}
        for number, names in enumerate(_turns(block)):
            hessian, drift = bench.behind(rounded, names[0]) if number else (bench.hessians[names[0]], None)
            curvature = prepare(hessian, layout, DAMPING)
            for name in names:
                weight = bench.original[name]
                wanted = weight if drift is None else _moved(weight, curvature, drift, hessian.diagonal().mean())
                rounded[name] = solve(wanted, curvature, layout).decode()
        found |= rounded
    return found


def _moved(weight: torch.Tensor, curvature: Curvature, drift: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """W + W D inverse(H), as damped: with it outputs on x' come closest to the original's on x (arXiv:2504.02692)."""
    inverse = curvature.factor.T @ curvature.factor  # of H over its mean diagonal, in rounding order
    lost = (weight @ drift)[:, curvature.order] / mean
    return weight + (lost @ inverse)[:, curvature.order.argsort()]


def _blocks(bench: Bench) -> list[list[str]]:
    blocks: dict[str, list[str]] = {}
    for name in bench.linears:
        blocks.setdefault(name.split("layers.")[1].split(".")[0], []).append(name)
    return list(blocks.values())


def _turns(block: list[str]) -> list[list[str]]:
    """A Llama's layers in the order of their calls, those with one input together."""
    kinds = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
    return [[name for name in block if name.endswith(kind)] for kind in kinds]


def hubbot(bench: Bench, layout: Gptq, *, damping: float = DAMPING, sweeps: int | None = None) -> Weights:
    extra = {} if sweeps is None else {"sweeps": sweeps}
    return {
        name: solve(weight, prepare(bench.hessians[name], layout, damping), layout, **extra).decode()
        for name, weight in bench.original.items()
    }


def end_to_end(bench: Bench, layout: Gptq) -> Weights:
    """As hubbot's variants with -e2e."""
    found: Weights = {}
    for names in [names for block in _blocks(bench) for names in _turns(block)]:
        weights = {f"{name}.weight": bench.original[name] for name in names}
        curvature = prepare(bench.hessians[names[0]], layout, DAMPING)
        solved = solve_weighed(weights, bench.bands[f"{names[0]}.weight"], curvature, layout)
        found |= {name: solution.decode() for name, solution in zip(names, solved, strict=True)}
    return found


def on_quantized_prefix(bench: Bench, layout: Gptq) -> Weights:
    """As hubbot, but each block is calibrated on inputs that the quantized blocks before it made."""
    found: Weights = {}
    blocks = sorted({name.split("layers.")[1].split(".")[0] for name in bench.linears}, key=int)
    for block in blocks:
        names = [name for name in bench.linears if f"layers.{block}." in name]
        bench.install(found)
        hessians = bench.collect(names)
        for name in names:
            found[name] = solve(bench.original[name], prepare(hessians[name], layout, DAMPING), layout).decode()
    bench.install(bench.original)
    return found


def gptqmodel(bench: Bench, layout: Gptq) -> Weights:
    """GPTQModel with its defaults (group-aware act-order, damping 0.05) in a process of its own."""
    with tempfile.TemporaryDirectory() as work:
        windows, out = Path(work, "windows.json"), Path(bench.keep or work, layout.name)
        windows.write_text(json.dumps(bench.calibration.tolist()))
        asked = [str(bench.folder), str(windows), str(out), str(layout.bits), str(layout.group_size)]
        command = [sys.executable, __file__, "--gptqmodel", *asked, "1" if layout.act_order else "0"]
        if not (out / "config.json").exists():
            done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
            if done.returncode:
                sys.exit(f"GPTQModel failed:\n{done.stderr[-3000:]}")
        tensors = {key: value for path in out.glob("*.safetensors") for key, value in load_file(path).items()}
    return {
        name: GptqTensor(
            bits=layout.bits,
            zero_offset=1,
            qweight=tensors[f"{name}.qweight"],
            qzeros=tensors[f"{name}.qzeros"],
            scales=tensors[f"{name}.scales"],
            g_idx=tensors[f"{name}.g_idx"],
        ).decode()
        for name in bench.linears
    }


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "GPTQMODEL_CPU_WORKERS": "2",
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }


def run_gptqmodel(folder: str, windows: str, out: str, bits: str, group: str, act_order: str) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig

    desc_act = act_order == "1"
    config = QuantizeConfig(
        bits=int(bits), group_size=int(group), desc_act=desc_act, act_group_aware=not desc_act, offload_to_disk=False
    )
    model = GPTQModel.load(folder, config, device="cpu")
    ids = json.loads(Path(windows).read_text())
    model.quantize([{"input_ids": window, "attention_mask": [1] * len(window)} for window in ids], batch_size=16)
    model.save(out)


METHODS: dict[str, Callable[[Bench, Gptq], Weights]] = {
    "round to nearest": nearest,
    "GPTQModel": gptqmodel,
    "hubbot": hubbot,
    "hubbot, -e2e": end_to_end,
}


def table(bench: Bench, variants: Sequence[str], say: Callable[[str], None]) -> None:
    say("| variant | method | perplexity | KL divergence | against GPTQModel | solver, s |")
    say("| --- | --- | ---: | ---: | ---: | ---: |")
    base, _ = bench.score(bench.original)
    say(f"| original | | {base:.4f} | | | |")
    for name in variants:
        layout = parse_variant(name)
        assert isinstance(layout, Gptq)
        scores = {}
        _ = bench.bands  # whose time is the sweep's
        for method, make in METHODS.items():
            start = time.perf_counter()
            weights = make(bench, layout)
            scores[method] = (*bench.score(weights), time.perf_counter() - start)
        for method, (perplexity, divergence, seconds) in scores.items():
            share = divergence / scores["GPTQModel"][1]
            say(f"| {name} | {method} | {perplexity:.4f} | {divergence:.3e} | {share:.2f} | {seconds:.0f} |")


def experiments(bench: Bench, variants: Sequence[str], say: Callable[[str], None]) -> None:
    say(
        "\n| variant | damping 0.01 | 0.02 | 0.05 | 0.1 | 0.2 | no refinement | quantized prefix | behind rounded layers |"
    )
    say("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in variants:
        layout = parse_variant(name)
        assert isinstance(layout, Gptq)
        candidates = [hubbot(bench, layout, damping=damping) for damping in (0.01, 0.02, 0.05, 0.1, 0.2)]
        candidates += [
            hubbot(bench, layout, sweeps=0),
            on_quantized_prefix(bench, layout),
            behind_rounded(bench, layout),
        ]
        say(f"| {name} | " + " | ".join(f"{bench.score(weights)[1]:.3e}" for weights in candidates) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--experiments", action="store_true", help="damping, refinement and prefix too")
    parser.add_argument("--keep", type=Path, help="keep GPTQModel's folders here, and take them from here")
    parser.add_argument("--gptqmodel", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.gptqmodel:
        run_gptqmodel(*options.gptqmodel)
        return
    bench = Bench(options.model or demo_model(), options.keep)

    def say(line: str) -> None:
        print(line, flush=True)

    packages = ("torch", "transformers", "gptqmodel")
    say(f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in packages) + "\n")
    table(bench, options.variants.split(","), say)
    if options.experiments:
        experiments(bench, options.variants.split(","), say)


if __name__ == "__main__":
    main()
