"""Gradients that pass back block by block are those of the whole model."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hubbot.errors import Unsupported
from hubbot.model import part_layout, read_facts
from hubbot.model.parts import Part
from hubbot.sweep import gradients, kept, outputs
from hubbot.sweep.blocks import BlockModel
from hubbot.sweep.differentiable import obstacle
from hubbot.sweep.exchange import Exchange, exchanges
from hubbot.sweep.gradients import measure_gradients
from hubbot.sweep.group import ALONE, Group
from hubbot.sweep.kept import Kept, bands_of
from hubbot.sweep.weights import CheckpointWeights
from hubbot.sweep.windows import Windows
from tests.sweeps import LENGTH, windows

CPU = torch.device("cpu")
COUNT = 6


Found = dict[str, tuple[dict[str, slice], torch.Tensor]]


def model_of(folder: Path) -> BlockModel:
    return BlockModel(folder, part_layout(read_facts(folder)), CPU)


def measured(model: BlockModel, folder: Path, work: Path, calibration: Windows, group: Group = ALONE) -> Found:
    """Layer -> rows and matrix of its only band."""
    tensors, parts = (facts := read_facts(folder)).tensors, part_layout(facts)

    def weights(part: Part) -> CheckpointWeights:
        return CheckpointWeights(folder, tensors, part.tensors)

    measure_gradients(model, parts, weights, calibration, work / "gradients", group)
    assert all(value.is_meta for value in model.model.parameters())  # left without weights
    found = {name: bands for part in parts for name, bands in bands_of(work / "gradients", part, CPU).items()}
    assert {len(bands) for bands in found.values()} == {1}
    return {name: (dict(bands[0].rows), bands[0].matrix) for name, bands in found.items()}


def of_whole_model(folder: Path, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Module -> gradients of its outputs [tokens, outputs], by torch through all of the model at once."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.requires_grad_(False)
    seen: dict[str, torch.Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: object, __: object, output: torch.Tensor) -> None:
            output.requires_grad_()
            output.retain_grad()
            seen[name] = output

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(note(name))
    likely = model(input_ids=tokens, use_cache=False).logits.log_softmax(-1)
    labels = []
    for number, own in enumerate(likely.detach()):
        uniform = torch.rand((LENGTH, 1), generator=torch.Generator().manual_seed(gradients._SEED + number))
        labels.append(torch.searchsorted(own.exp().cumsum(-1), uniform))
    likely.gather(2, torch.stack(labels)).sum().backward()
    return {name: output.grad.flatten(0, 1) for name, output in seen.items() if output.grad is not None}


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_that_pass_back_block_by_block_are_those_of_the_whole_model(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    monkeypatch.setattr(kept, "_KEPT", torch.float32)
    monkeypatch.setattr(gradients, "DRAWS", 1)
    monkeypatch.setattr(outputs, "_shrunk", lambda total, tokens, _: total / tokens)
    folder, calibration = tiny_model("llama", tied=tied), windows(3, COUNT)
    found = measured(model_of(folder), folder, tmp_path, calibration)
    wanted = of_whole_model(folder, calibration.tokens)
    assert {name.removesuffix(".weight") for name in found} == {name for name in wanted if name != "lm_head"}
    for rows, matrix in found.values():
        own = torch.cat([wanted[name.removesuffix(".weight")] for name in rows], dim=1)
        expected = own.T @ own / len(own)
        deviation = expected.diagonal().sqrt()
        torch.testing.assert_close(matrix.diagonal().sqrt(), deviation, rtol=1e-4, atol=1e-6)
        correlation = (matrix - expected) / deviation / deviation[:, None]
        assert correlation.abs().max() < 1e-3  # they are kept in 16 bits


def test_layers_with_the_same_inputs_share_a_band(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    found = measured(model_of(tiny_model("llama")), tiny_model("llama"), tmp_path, windows(3, COUNT))
    sets = {tuple(name.split(".")[-2] for name in rows) for rows, _ in found.values()}
    assert sets == {("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "layers"),
    [("qwen3_moe", {"q_proj", "k_proj", "v_proj", "o_proj"}), ("gpt2", {"c_attn", "c_proj", "c_fc"})],
)
def test_gradients_pass_back_through_experts_and_reach_transposed_layers(
    tiny_model: Callable[..., Path], tmp_path: Path, family: str, layers: set[str]
) -> None:
    found = measured(model_of(tiny_model(family)), tiny_model(family), tmp_path, windows(3, COUNT))
    assert {name.split(".")[-2] for name in found} == layers
    assert all(float(matrix.diagonal().min()) > 0 for _, matrix in found.values())


@pytest.mark.parametrize(
    "steps", [1, 3, 4, 5]
)  # behind the embedding, the last block, the head, a block of the way back
def test_a_pass_that_was_killed_goes_on_behind_the_last_part_that_it_had_done(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    folder, calibration = tiny_model("llama"), windows(3, COUNT)
    wanted = measured(model_of(folder), folder, tmp_path / "whole", calibration)
    done: list[int] = []
    step = Kept.step

    def noted(self: Kept, number: int, gradient: torch.Tensor) -> None:
        step(self, number, gradient)
        done.append(number)
        if done == list(range(1, steps + 1)):
            raise KeyboardInterrupt

    monkeypatch.setattr(Kept, "step", noted)
    with pytest.raises(KeyboardInterrupt):
        measured(model_of(folder), folder, tmp_path / "killed", calibration)
    assert not (tmp_path / "killed/gradients").exists()
    found = measured(model_of(folder), folder, tmp_path / "killed", calibration)
    assert done == [1, 2, 3, 4, 5, 6]  # embedding, two blocks and head, and back; none of them twice
    assert all(torch.equal(found[name][1], wanted[name][1]) for name in wanted)
    assert {path.name for path in (tmp_path / "killed/gradients").iterdir()} == {
        "block-00000.safetensors",
        "block-00001.safetensors",
    }
    measured(model_of(folder), folder, tmp_path / "killed", calibration)
    assert len(done) == 6  # a finished one is kept


def test_what_another_boot_of_the_machine_has_left_of_a_pass_is_not_gone_on_from(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, back = tiny_model("llama"), gradients._Walk._back

    def killed(self: gradients._Walk, *given: Any) -> None:
        back(self, *given)
        raise KeyboardInterrupt

    monkeypatch.setattr(gradients._Walk, "_back", killed)
    for boot in ("before", "after"):
        monkeypatch.setattr(kept, "_boot", lambda boot=boot: boot)
        with pytest.raises(KeyboardInterrupt):
            measured(model_of(folder), folder, tmp_path, windows(3, COUNT))
        assert [path.name for path in tmp_path.glob("gradients.partial/block-*")] == ["block-00001.safetensors"]


def test_how_far_a_pass_is_is_told_part_by_part_forth_and_back(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    told: list[object] = []

    @contextmanager
    def telling(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        told.append((what, total, unit))
        yield told.append

    folder = tiny_model("llama")
    tensors, parts = (facts := read_facts(folder)).tensors, part_layout(facts)
    weights = {part: CheckpointWeights(folder, tensors, part.tensors) for part in parts}
    work = tmp_path / "gradients"
    measure_gradients(model_of(folder), parts, weights.__getitem__, windows(3, 2), work, ALONE, telling)
    forth, back = ("gradients, 1 of 2: forth", 4, "parts"), ("gradients, 2 of 2: back", 2, "blocks")
    assert told == [forth, 1, 1, 1, 1, back, 1, 1]


@pytest.mark.parametrize("count", [4, 1])  # the second process has windows, or none
def test_two_processes_find_what_one_finds(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(gradients, "gradient_batch_tokens", lambda _: 2 * LENGTH)
    folder, calibration = tiny_model("llama"), windows(3, count)
    alone = measured(model_of(folder), folder, tmp_path / "alone", calibration)
    ends = exchanges(2, get_context("spawn"), slot=2**20)
    works = [tmp_path / "first", tmp_path / "second"]
    models = [model_of(folder) for _ in ends]  # here: transformers builds one at a time
    with ThreadPoolExecutor(2) as pool:  # one waits for the other
        both = list(pool.map(measured, models, [folder] * 2, works, [calibration] * 2, ends))
    for found in both:
        assert found.keys() == alone.keys()
        for name, (rows, matrix) in found.items():
            assert rows == alone[name][0]
            torch.testing.assert_close(matrix, alone[name][1], rtol=2e-3, atol=1e-3 * float(matrix.diagonal().mean()))


def test_what_fails_in_one_process_is_told_in_both(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "gradient_batch_tokens", lambda _: 2 * LENGTH)
    monkeypatch.setattr(gradients, "DRAWS", 1)

    def fail(*_: object) -> None:
        msg = "derivative for aten::x is not implemented"
        raise NotImplementedError(msg)

    monkeypatch.setattr(gradients._Walk, "_through", fail)
    folder, ends = tiny_model("llama"), exchanges(2, get_context("spawn"), slot=2**20)
    models = [model_of(folder) for _ in ends]
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(measured, model, folder, tmp_path / str(end.rank), windows(3, 1), end)
            for model, end in zip(models, ends, strict=True)
        ]
    for one in both:
        with pytest.raises(Unsupported, match=r"aten::x is not implemented.*Leave -e2e out"):
            one.result()


@pytest.mark.parametrize("said", [1, 3, 27])  # words of the sums: the first, in the midst of one, the last
def test_memory_that_runs_out_in_one_process_while_sums_are_added_up_is_told_in_both(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: int
) -> None:
    monkeypatch.setattr(gradients, "gradient_batch_tokens", lambda _: 2 * LENGTH)
    monkeypatch.setattr(gradients, "DRAWS", 1)
    bands, all_gather, words = outputs.OutputSums.bands, Exchange.all_gather, [0]

    def summed(self: outputs.OutputSums, group: Group) -> Any:
        if group.rank == 1:
            words.append(0)
        return bands(self, group)

    def short(self: Exchange, value: Any) -> Any:
        found = all_gather(self, value)
        if self.rank == 1 and len(words) == 2:
            words[1] += 1
            if words[1] == said:
                raise MemoryError
        return found

    monkeypatch.setattr(outputs.OutputSums, "bands", summed)
    monkeypatch.setattr(Exchange, "all_gather", short)
    folder, ends = tiny_model("llama"), exchanges(2, get_context("spawn"), slot=2**20)
    models = [model_of(folder) for _ in ends]

    def told(model: BlockModel, end: Exchange) -> tuple[str, list[int]]:
        with pytest.raises(Unsupported) as error:
            measured(model, folder, tmp_path / str(end.rank), windows(3, 4), end)
        return str(error.value), all_gather(end, end.rank)

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(told, models, ends))
    assert both[0] == both[1]
    sentence, after = both[0]
    assert "too little room to sum up the gradients of block-00001 (MemoryError). Leave -e2e out" in sentence
    assert after == [0, 1]  # they understand each other still
    assert not list(tmp_path.rglob("gradients*"))


def test_an_unsure_correlation_is_shrunk_and_a_sure_one_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(32, 32, generator=generator)
    for tokens, least, most in ((64, 0.3, 0.9), (100_000, 0.999, 1.0)):
        rows = torch.randn(tokens, 32, generator=generator) @ mix
        sums = outputs.OutputSums({}, CPU)
        sums._sets = {"layer": {"layer": 32}}
        sums._found = {"layer": [rows]}
        sums.next_batch()
        matrix, mean = sums.bands(ALONE)["layer"][0].matrix, rows.T @ rows / tokens
        off = ~torch.eye(32, dtype=torch.bool)
        torch.testing.assert_close(matrix.diagonal(), mean.diagonal())
        share = float((matrix[off] / mean[off]).median())
        assert least < share <= most


def test_a_model_whose_blocks_hand_more_on_than_hidden_states_is_refused(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(Unsupported, match="Leave -e2e out"):
        measured(model_of(tiny_model("gemma3n")), tiny_model("gemma3n"), tmp_path, windows(3, COUNT))


class _NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, given: torch.Tensor) -> torch.Tensor:
        return given * 1

    @staticmethod
    def backward(ctx: object, *_: torch.Tensor) -> None:
        msg = "derivative for aten::x is not implemented"
        raise NotImplementedError(msg)


def test_a_block_that_nothing_passes_back_through_is_told_before_a_weight_is_read(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_model("llama"))
    assert obstacle(model) is None
    norm: Any = type(model.blocks[1].input_layernorm)
    forward = norm.forward
    monkeypatch.setattr(norm, "forward", lambda self, given: _NoDerivative.apply(forward(self, given)))
    assert obstacle(model) == "NotImplementedError: derivative for aten::x is not implemented"


def test_a_block_may_write_into_what_it_is_given(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calibration = tiny_model("llama"), windows(3, 2)
    wanted = measured(model_of(folder), folder, tmp_path / "plain", calibration)
    model = model_of(folder)
    block: Any = type(model.blocks[0])
    forward = block.forward
    monkeypatch.setattr(
        block, "forward", lambda self, given, *rest, **named: forward(self, given.mul_(1), *rest, **named)
    )
    found = measured(model, folder, tmp_path / "written", calibration)
    assert all(torch.equal(found[name][1], wanted[name][1]) for name in wanted)


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        (MemoryError("cannot allocate 9 GB"), "too little room to pass gradients back through block-00001"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "too little room to pass gradients back through block-00001",
        ),
        (None, "not finite at the inputs of block-00001"),
    ],
)
def test_what_a_pass_fails_at_is_one_sentence_and_nothing_of_it_stays(
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: Exception | None,
    said: str,
) -> None:
    def fail(_: object, __: object, some: slice, ___: object, gradient: torch.Tensor, ____: object) -> torch.Tensor:
        if failing:
            raise failing
        return gradient[:, some] * torch.inf

    monkeypatch.setattr(gradients._Walk, "_through", fail)
    folder = tiny_model("llama")
    model = model_of(folder)
    with pytest.raises(Unsupported, match=f"{said}.*Leave -e2e out of the variants' names"):
        measured(model, folder, tmp_path, windows(3, 2))
    assert not list(tmp_path.iterdir())
    assert all(value.is_meta for value in model.model.parameters())


class _Router(torch.nn.Linear):
    def forward(self, given: torch.Tensor) -> Any:
        return super().forward(given).topk(1)


def test_layers_that_return_other_than_their_outputs_are_passed_over() -> None:
    router, plain, given = _Router(4, 3), torch.nn.Linear(4, 3), torch.randn(5, 4, requires_grad=True)
    sums = outputs.OutputSums({"router": router, "plain": plain}, CPU)
    with sums.listening():
        (plain(given).sum() + router(given)[0].sum()).backward()
        sums.next_batch()
    assert set(sums.bands(ALONE)) == {"plain"}
