"""Blocks that compute with weights which the checkpoint has once, in another block: Zamba 2's shared transformers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubbot.formats.protocol import Encoded, InputStatistics
from hubbot.model import part_layout, read_facts
from hubbot.model.parts import Part, PartKind
from hubbot.sweep import gradients, kept, outputs
from hubbot.sweep.blocks import BlockModel
from hubbot.sweep.kept import Kept
from hubbot.sweep.walk import SweepResult
from hubbot.sweep.weights import CheckpointWeights
from tests.models import make_other
from tests.sweep.rounding import RoundingFormat, decoded_checkpoint
from tests.sweep.test_architectures import perplexity
from tests.sweep.test_gradients import measured, model_of, of_whole_model
from tests.sweeps import run_sweep, windows

LEVELS: dict[str, int | None] = {"fine": 60, "coarse": 9}
SHARED = ".shared_transformer."
# Blocks 3 and 5 compute with what blocks 1 and 2 store, each through adapters of its own that lie there too.
ZAMBA = {
    "num_hidden_layers": 6,
    "layers_block_type": ["mamba", "hybrid", "hybrid", "hybrid", "mamba", "hybrid"],
    "num_mem_blocks": 2,
    "num_key_value_heads": 4,
    "attention_head_dim": 32,
    "use_shared_attention_adapter": True,
    "adapter_rank": 32,
    "use_mem_rope": True,
    "mamba_d_state": 16,
    "mamba_ngroups": 1,
    "n_mamba_heads": 32,
    "mamba_headdim": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_other("Zamba2Config", ZAMBA, tmp_path_factory.mktemp("zamba2") / "tiny")


class LeavingShared(RoundingFormat):
    """As every family does: what several blocks compute with stays as it is. stopped: at this part, as one that is killed."""

    def __init__(self, out: Path, stopped: str | None = None) -> None:
        super().__init__(out, LEVELS)
        self._stopped = stopped

    def encode(
        self, part: Part, weights: Mapping[str, torch.Tensor], statistics: Mapping[str, InputStatistics]
    ) -> Mapping[str, Mapping[str, Encoded]]:
        if part.name == self._stopped:
            raise KeyboardInterrupt
        return super().encode(part, {name: weights[name] for name in weights if SHARED not in name}, statistics)


def run(folder: Path, out: Path, stopped: str | None = None) -> tuple[SweepResult, LeavingShared]:
    out.mkdir(exist_ok=True)
    made = LeavingShared(out, stopped)
    return run_sweep(folder, out, [made], calibration=windows(1, 3), evaluation=windows(2, 5)), made


@pytest.fixture(scope="module")
def whole(folder: Path) -> SweepResult:
    return run(folder, folder.parent / "whole")[0]


@pytest.mark.slow
def test_every_block_computes_with_what_it_borrows(folder: Path, whole: SweepResult, tmp_path: Path) -> None:
    assert whole.base is not None
    assert whole.base.perplexity == pytest.approx(perplexity(folder), rel=1e-6)
    stored = load_file(folder / "model.safetensors")
    for name, levels in LEVELS.items():
        assert levels
        rounded = shutil.copytree(folder, tmp_path / name)
        tensors = decoded_checkpoint(folder, levels)
        tensors |= {tensor: weight for tensor, weight in stored.items() if SHARED in tensor}
        save_file(tensors, rounded / "model.safetensors", metadata={"format": "pt"})
        assert whole.scores[name].perplexity == pytest.approx(perplexity(rounded), rel=1e-6)
        assert whole.scores[name].perplexity != pytest.approx(whole.base.perplexity, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["block-00003", "block-00005"])
def test_a_sweep_that_goes_on_behind_the_block_that_stores_them_borrows_them_still(
    folder: Path, whole: SweepResult, tmp_path: Path, part: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path, stopped=part)
    done, made = run(folder, tmp_path)
    assert not any(name.startswith("model.layers.2.") for name in made.seen), "that block is not walked again"
    assert (done.base, done.scores) == (whole.base, whole.scores)


def test_a_block_that_borrows_has_its_weights_and_leaves_none(folder: Path) -> None:
    facts = read_facts(folder)
    model = BlockModel(folder, parts := part_layout(facts), torch.device("cpu"))
    assert {block: {name.split(".")[2] for name in names} for block, names in model.borrowed.items()} == {
        3: {"1"},
        5: {"2"},
    }
    asked: list[str] = []

    def weights(part: Part) -> CheckpointWeights:
        asked.extend(part.tensors)
        return CheckpointWeights(folder, facts.tensors, part.tensors)

    part = next(part for part in parts if part.kind is PartKind.BLOCK and part.index == 3)
    model.enter(part, weights)
    assert not [name for name, value in model.blocks[3].named_parameters() if value.is_meta]
    assert sorted(asked) == sorted([*part.tensors, *(name for name in facts.tensors if f".1{SHARED}" in name)])
    model.remove(part)
    assert all(value.is_meta for value in model.model.parameters())


@pytest.mark.slow
def test_gradients_pass_back_through_borrowed_weights_also_in_a_pass_that_was_killed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_KEPT", torch.float32)
    monkeypatch.setattr(gradients, "DRAWS", 1)
    monkeypatch.setattr(outputs, "_shrunk", lambda total, tokens, _: total / tokens)
    step = Kept.step

    def until(number: int) -> None:
        def noted(self: Kept, done: int, gradient: torch.Tensor) -> None:
            step(self, done, gradient)
            if done == number:
                raise KeyboardInterrupt

        monkeypatch.setattr(Kept, "step", noted)

    for number in (4, 10):  # behind block 2 on the way forth, behind block 4 on the way back
        until(number)
        with pytest.raises(KeyboardInterrupt):
            measured(model_of(folder), folder, tmp_path, windows(3, 6))
    monkeypatch.setattr(Kept, "step", step)
    found = measured(model_of(folder), folder, tmp_path, windows(3, 6))
    wanted = of_whole_model(folder, windows(3, 6).tokens)
    assert {name.removesuffix(".weight") for name in found} == {
        name for name in wanted if name != "lm_head" and SHARED not in name
    }
    for rows, matrix in found.values():
        own = torch.cat([wanted[name.removesuffix(".weight")] for name in rows], dim=1)
        deviation = (own.T @ own / len(own)).diagonal().sqrt()
        torch.testing.assert_close(matrix.diagonal().sqrt(), deviation, rtol=1e-4, atol=1e-6)
    assert not list(tmp_path.glob("gradients/companions"))
