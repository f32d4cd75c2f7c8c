"""Mixtures of experts and other decoders unlike Llama: the numbers of plain transformers, every expert's own statistics."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from hubbot.sweep.walk import SweepResult
from tests.models import HYBRIDS, MIXTURES, UNLIKE, make_model
from tests.sweep.rounding import RoundingFormat, decoded_checkpoint
from tests.sweeps import run_sweep, windows
from tests.tiers import suite


def run(folder: Path, out: Path) -> tuple[SweepResult, RoundingFormat]:
    made = RoundingFormat(out, {"fine": 60})
    return run_sweep(folder, out, [made], calibration=windows(1, 4), evaluation=windows(2, 5)), made


def perplexity(folder: Path) -> float:
    return perplexity_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


@torch.inference_mode()
def perplexity_of(model: torch.nn.Module) -> float:
    tokens = windows(2, 5).tokens
    told = torch.cat([model(row[None]).logits[0, :-1].double().log_softmax(-1) for row in tokens])
    return math.exp(-told.gather(1, tokens[:, 1:].reshape(-1, 1)).mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [*suite([*MIXTURES], first=3), *suite([*UNLIKE], first=2), *suite([*HYBRIDS], first=2)]
)
def test_perplexity_of_base_and_variant_is_that_of_plain_transformers(family: str, tmp_path: Path) -> None:
    folder = make_model(family, tmp_path / "tiny")
    result, _ = run(folder, tmp_path)
    assert result.base is not None
    assert result.base.perplexity == pytest.approx(perplexity(folder), rel=1e-6)
    rounded = tmp_path / "rounded"
    shutil.copytree(folder, rounded)
    save_file(decoded_checkpoint(folder, 60), rounded / "model.safetensors", metadata={"format": "pt"})
    assert result.scores["fine"].perplexity == pytest.approx(perplexity(rounded), rel=1e-6)
    assert result.scores["fine"].perplexity != pytest.approx(result.base.perplexity, rel=1e-6)


@pytest.mark.slow
def test_every_expert_has_the_statistics_of_its_own_inputs(tmp_path: Path) -> None:
    folder = make_model("mixtral", tmp_path / "tiny")
    result, made = run(folder, tmp_path)
    wanted: dict[str, list[torch.Tensor]] = defaultdict(list)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager").eval()

    def note(block: int):
        def forward(hidden, chosen, weights):
            out = torch.zeros_like(hidden)
            experts = model.model.layers[block].mlp.experts
            for expert in range(4):
                token, slot = (chosen == expert).nonzero(as_tuple=True)
                gate, up = (hidden[token] @ experts.gate_up_proj[expert].T).chunk(2, -1)
                inner = torch.nn.functional.silu(gate) * up
                stem = f"model.layers.{block}.block_sparse_moe.experts.{expert}"
                wanted[f"{stem}.w1.weight"].append(hidden[token])
                wanted[f"{stem}.w2.weight"].append(inner)
                out.index_add_(0, token, inner @ experts.down_proj[expert].T * weights[token, slot, None])
            return out

        return forward

    for block, layer in enumerate(model.model.layers):
        layer.mlp.experts.forward = note(block)
    with torch.inference_mode():
        model(windows(1, 4).tokens)
    for name, pieces in wanted.items():
        rows = torch.cat(pieces)
        found = made.seen[name]
        assert found.tokens == len(rows)
        assert found.hessian is not None
        torch.testing.assert_close(found.hessian, rows.T @ rows, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.squares, rows.square().sum(0), rtol=1e-4, atol=1e-4)
    assert made.seen["model.layers.0.block_sparse_moe.experts.1.w3.weight"].tokens > 0
    everyone = windows(1, 4).tokens.numel()
    for use in result.experts:
        stem = f"model.layers.{use.block}.block_sparse_moe.experts"
        counts = sorted(sum(map(len, wanted[f"{stem}.{expert}.w1.weight"])) for expert in range(4))
        assert (use.experts, use.few) == (4, 0)
        assert use.least * everyone == pytest.approx(counts[0])
        assert use.median * everyone == pytest.approx((counts[1] + counts[2]) / 2)
    assert [use.block for use in result.experts] == [0, 1]
