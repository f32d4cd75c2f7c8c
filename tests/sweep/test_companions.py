"""Models whose blocks are given more than hidden states: per-layer embeddings, other blocks' keys, several states at once."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator, Mapping
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from hubbot.formats.protocol import Encoded, InputStatistics
from hubbot.model.parts import Part, PartKind
from hubbot.sweep import passage
from hubbot.sweep.exchange import exchanges
from hubbot.sweep.group import ALONE, Group
from hubbot.sweep.walk import SweepResult
from tests.models import BESIDE, make_model
from tests.sweep.rounding import RoundingFormat, decoded_checkpoint
from tests.sweep.test_architectures import perplexity
from tests.sweeps import LENGTH, run_sweep, windows

LEVELS: dict[str, int | None] = {"fine": 60, "coarse": 9}


@pytest.fixture(scope="module", params=[*BESIDE])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(request.param, tmp_path_factory.mktemp(request.param) / "tiny")


@pytest.fixture(scope="module", autouse=True)
def two_windows_at_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passage, "batch_tokens", lambda _: 2 * LENGTH)
        yield


@pytest.fixture(scope="module")
def whole(folder: Path) -> SweepResult:
    return run(folder, folder.parent / "whole", RoundingFormat(folder.parent / "whole", LEVELS))


def run(folder: Path, out: Path, made: RoundingFormat, group: Group = ALONE) -> SweepResult:
    out.mkdir(exist_ok=True)
    return run_sweep(folder, out, [made], calibration=windows(1, 3), evaluation=windows(2, 5), group=group)


def test_every_stream_is_computed_with_its_own_per_layer_embeddings_and_keys(
    folder: Path, whole: SweepResult, tmp_path: Path
) -> None:
    assert whole.base is not None
    assert whole.base.perplexity == pytest.approx(perplexity(folder), rel=1e-6)
    for name, levels in LEVELS.items():
        rounded = shutil.copytree(folder, tmp_path / name)
        save_file(decoded_checkpoint(folder, levels), rounded / "model.safetensors", metadata={"format": "pt"})
        assert whole.scores[name].perplexity == pytest.approx(perplexity(rounded), rel=1e-6)
        assert whole.scores[name].perplexity != pytest.approx(whole.base.perplexity, rel=1e-4)


@pytest.mark.slow
def test_statistics_are_those_of_layers_that_read_what_goes_with_the_tokens(folder: Path, tmp_path: Path) -> None:
    made = RoundingFormat(tmp_path, {"fine": 60})
    run(folder, tmp_path, made)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    last = len(model.model.layers) - 1
    linears = dict(model.model.layers[last].named_modules())
    for layer in linears.keys() & {"per_layer_projection", "self_attn.o_proj", "mlp.down_proj"}:
        seen: list[torch.Tensor] = []
        module = linears[layer]
        module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].flatten(0, -2)))
        with torch.inference_mode():
            model(windows(1, 3).tokens)
        rows = torch.cat(seen)
        found = made.seen[f"model.layers.{last}.{layer}.weight"]
        torch.testing.assert_close(found.squares, rows.square().sum(0), rtol=1e-3, atol=1e-3)


class Interrupted(RoundingFormat):
    """Stops when a part is encoded, as a process that is killed."""

    def __init__(self, out: Path, part: str) -> None:
        super().__init__(out, LEVELS)
        self._part = part

    def encode(
        self, part: Part, weights: Mapping[str, torch.Tensor], statistics: Mapping[str, InputStatistics]
    ) -> Mapping[str, Mapping[str, Encoded]]:
        if part.name == self._part:
            raise KeyboardInterrupt
        return super().encode(part, weights, statistics)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["block-00000", "block-00003"])
def test_a_sweep_that_was_stopped_goes_on_with_what_its_streams_had(
    folder: Path, whole: SweepResult, tmp_path: Path, part: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path, Interrupted(tmp_path, part))
    made = RoundingFormat(tmp_path, LEVELS)
    done = run(folder, tmp_path, made)
    assert "model.layers.0.self_attn.q_proj.weight" not in made.seen or part == "block-00000"
    assert (done.base, done.scores) == (whole.base, whole.scores)


def share(group: Group, folder: Path, out: Path, name: str) -> None:
    """In a process of its own: makes one variant, and leaves what was found."""
    passage.batch_tokens = lambda device: 2 * LENGTH  # type: ignore[attr-defined]
    result = run(folder, out / name, RoundingFormat(out / name, {name: LEVELS[name]}), group)
    (out / f"{name}.pickle").write_bytes(pickle.dumps((result.base, result.scores[name])))


@pytest.mark.heavy
def test_two_processes_that_share_a_sweep_measure_what_one_measures(
    folder: Path, whole: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # llama.cpp's converter puts a folder with other tests first
    context = get_context("spawn")
    ends = zip(exchanges(2, context), LEVELS, strict=True)
    processes = [context.Process(target=share, args=(end, folder, tmp_path, name)) for end, name in ends]
    for process in processes:
        process.start()
    for process, name in zip(processes, LEVELS, strict=True):
        process.join()
        assert process.exitcode == 0
        found = pickle.loads((tmp_path / f"{name}.pickle").read_bytes())
        assert found == (whole.base, whole.scores[name])


class HeadOnly(RoundingFormat):
    """Leaves the embedding as it is, as GPTQ does."""

    def encode(
        self, part: Part, weights: Mapping[str, torch.Tensor], statistics: Mapping[str, InputStatistics]
    ) -> Mapping[str, Mapping[str, Encoded]]:
        made = super().encode(part, weights, statistics)
        return {} if part.kind is PartKind.EMBEDDING else made


def test_variants_of_one_embedding_have_one_table_of_what_goes_with_the_tokens(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, HeadOnly(tmp_path, LEVELS))
    tables = list(tmp_path.glob("companions/*"))
    base = {path.stat().st_ino for path in tables if path.name.startswith("base.")}
    assert {path.stat().st_ino for path in tables} == base
    assert bool(base) is ("gemma" in folder.parent.name)
    assert not any(path.is_symlink() for path in tables), "which no walled process may make"
