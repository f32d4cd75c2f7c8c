"""Types given to tensors: the cheapest mix of a size, by probes that a sweep measures, and files that llama.cpp reads."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hubbot import llamacpp
from hubbot.child import allocate as child
from hubbot.child.messages import AllocateQuestion
from hubbot.confine.isolate import Answer
from hubbot.confine.stage import Stage
from hubbot.errors import BadSettings, BudgetExceeded
from hubbot.formats.gguf import ALLOCATED, codec, parse
from hubbot.formats.gguf.allocation import NARROW, TYPES, Matrix, allocated, grouped
from hubbot.formats.gguf.converter import Captured
from hubbot.formats.gguf.probes import matrices_of
from hubbot.hub.client import Hub as Seen
from hubbot.hub.read.datasets import fetch_text
from hubbot.hub.read.source import fetch_headers
from hubbot.job import pipeline
from hubbot.job.pipeline import Run
from hubbot.model import TensorInfo
from hubbot.model.parts import Part
from hubbot.planning.plan import Plan
from hubbot.planning.plan_view import as_markdown
from hubbot.record.file import read_record
from hubbot.settings import load_settings
from hubbot.sweep.passage import Decoders, Passage
from hubbot.sweep.streams import CheckpointClock
from tests.jobs import command, flags, options, unconfined
from tests.models import make_other

SIZES = dict(zip(TYPES, (84, 110, 144, 176, 210), strict=True))


def test_the_cheapest_mix_of_a_size_is_found() -> None:
    rng = np.random.default_rng(0)
    sizes = {
        name: {kind: weights * size for kind, size in SIZES.items()}
        for name, weights in zip("abcd", (1, 2, 3, 1), strict=False)
    }
    worse = 0.0
    for _ in range(20):
        costs: dict[str, dict[str, float]] = {
            name: {kind: float(v) for kind, v in zip(TYPES, rng.random() * 4.0 ** -np.arange(5), strict=False)}
            for name in sizes
        }
        budget = 7 * 144
        found = allocated(costs, sizes, budget)
        assert sum(sizes[name][kind] for name, kind in found.items()) <= budget
        every = (dict(zip(sizes, kinds, strict=False)) for kinds in itertools.product(TYPES, repeat=4))
        fitting = (mix for mix in every if sum(sizes[name][kind] for name, kind in mix.items()) <= budget)
        best = min(sum(costs[name][kind] for name, kind in mix.items()) for mix in fitting)
        worse = max(worse, sum(costs[name][kind] for name, kind in found.items()) / best)
    assert worse < 1.5, "the multiplier misses a little of what is not convex, and no more"


def test_where_nothing_fits_the_smallest_types_come_out() -> None:
    sizes = {"a": dict(SIZES)}
    assert allocated({"a": dict.fromkeys(TYPES, 0.0)}, sizes, 10) == {"a": "Q2_K"}


def test_neighbouring_blocks_share_a_probe_where_there_are_many() -> None:
    def matrices(blocks: int) -> list[Matrix]:
        names = [f"blk.{block}.{kind}.weight" for block in range(blocks) for kind in ("attn_q", "ffn_up")]
        return [Matrix(leaves=(name,), tensor=name, bytes=SIZES) for name in ["token_embd.weight", *names]]

    assert len(grouped(matrices(16))) == 1 + 2 * 16
    groups = grouped(matrices(33))
    assert len(groups) == 1 + 2 * 11
    assert [m.tensor for m in groups["blk.3.attn_q.weight"]] == [f"blk.{n}.attn_q.weight" for n in (3, 4, 5)]


def test_only_a_matrix_that_stands_by_itself_in_a_type_of_the_mix_is_given_another() -> None:
    def tensor(name: str, shape: tuple[int, ...], *leaves: str) -> Captured:
        return Captured(name=name, shape=shape, kind=codec.BF16, value=None, leaves=leaves)

    tensors = [
        tensor("plain", (8, 256), "a"),
        tensor("transposed", (8, 256), "b"),
        tensor("fused", (4, 8, 256), "c"),
        tensor("stacked", (16, 256), "d", "e"),
        tensor("experts", (2, 8, 256), "g", "h"),
        tensor("narrow", (8, 96), "i"),
        tensor("tied", (8, 256), "j"),
        tensor("to it", (8, 256), "j"),
        tensor("kept", (8, 256), "f"),
    ]
    facts = {leaf: TensorInfo(dtype="BF16", shape=(8, 256), file="s") for leaf in "acdefghj"}
    facts["i"] = replace(facts["a"], shape=(8, 96))
    facts["b"] = replace(facts["a"], shape=(256, 8))
    kinds = {one.name: codec.type_named("q4_K") for one in tensors} | {
        "kept": codec.type_named("q8_0"),
        "narrow": codec.type_named("q5_0"),
    }
    found = matrices_of(tensors, kinds, facts)
    assert [(one.tensor, one.leaves) for one in found] == [
        ("plain", ("a",)),
        ("experts", ("g", "h")),
        ("narrow", ("i",)),
    ]
    assert [one.bytes.get("Q4_K") for one in found] == [8 * 144, 2 * 8 * 144, None]
    assert found[2].bytes["Q5_0"] == 8 * 3 * 22


@pytest.mark.parametrize("name", ALLOCATED)
def test_an_allocated_file_has_a_name_of_its_own(name: str) -> None:
    for suffix, hessian in (("_D", False), ("_DH", True)):
        found = parse((name + suffix).lower())
        assert found is not None
        assert (found.name, found.type, found.allocated, found.hessian) == (name + suffix, name, True, hessian)
    assert parse("Q8_0_D") is None


@pytest.mark.slow
def test_one_run_measures_the_types_and_keeps_them(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_model("llama"))
    asked: list[str] = []

    def call(stage: Stage[Any, Any], question: Any, **_: Any) -> Answer[Any]:
        asked.append(stage.target.partition(":")[2])
        return unconfined(stage, question)

    changes = {"variants": "Q4_K_M,Q4_K_M_D,Q4_K_M_DH", "evaluation.samples": False}
    given = {**flags(tmp_path), **changes}
    found = pipeline.plan(Run(model=model, settings=load_settings(None, given)), unconfined)
    assert found.probing is not None
    assert found.probing.variants == ("Q4_K_M_D", "Q4_K_M_DH")
    assert (found.probing.at_once, found.probing.walks) == (found.probing.probes, 1)
    assert "are measured, by 16 probes of 8,192 tokens each in one walk" in as_markdown(found)
    record = pipeline.run(Run(model=model, settings=load_settings(None, given)), call).record
    assert asked == ["survey", "allocate", "make", "check"]
    assert {one.name: one.reason for one in record.variants if not one.passed} == {}
    assert record.timings["types"] > 0
    types = {one.name: one.types for one in record.variants}
    assert types["Q4_K_M"] == {}
    assert types["Q4_K_M_D"] == types["Q4_K_M_DH"] != {}
    assert read_record(tmp_path / "out").variants[1].types == types["Q4_K_M_D"]
    files = {one.name: tmp_path / "out" / one.files[0].path for one in record.variants}
    kinds = {name: kinds_of(path) for name, path in files.items()}
    assert {tensor: kinds["Q4_K_M_D"][tensor] for tensor in types["Q4_K_M_D"]} == types["Q4_K_M_D"]
    assert kinds["Q4_K_M_D"] == kinds["Q4_K_M_DH"] != kinds["Q4_K_M"]
    assert files["Q4_K_M_D"].stat().st_size <= files["Q4_K_M"].stat().st_size
    assert files["Q4_K_M_D"].read_bytes() != files["Q4_K_M_DH"].read_bytes()
    assert "types given to tensors by the divergence" in " ".join(record.variants[1].notes)

    asked.clear()
    again = pipeline.run(Run(model=model, settings=load_settings(None, given)), call).record
    assert asked == []
    assert again.variants == record.variants
    words = options(tmp_path, evaluation=None, context=None, variants="Q4_K_M_D", out=str(tmp_path / "out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "walk", lambda *_, **__: pytest.fail("measured again"))
        assert command("allocate", model, *words, call=unconfined) == 0
    told = tomllib.loads(capsys.readouterr().out)["gguf"]["allocation"]
    assert told == {"Q4_K_M": types["Q4_K_M_D"]}

    pinned = load_settings(None, {**given, "gguf.allocation": told})
    planned = pipeline.plan(Run(model=model, settings=pinned), unconfined)
    assert planned.probing is None
    assert planned.variants[1].file_bytes == record.variants[1].files[0].size


@pytest.mark.slow
def test_a_plan_puts_as_many_probes_into_a_walk_as_memory_has_room_for(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    given = {**flags(tmp_path), "variants": "Q4_K_M_D"}

    def planned(**changes: object) -> Plan:
        settings = load_settings(None, {**given, **changes})
        return pipeline.plan(Run(model=str(tiny_model("llama")), settings=settings), unconfined)

    whole = planned().probing
    assert whole is not None
    less = planned(**{"budget.ram": whole.need.ram - 1}).probing
    assert less is not None
    assert (less.probes, less.at_once, less.walks) == (16, 15, 2)
    [refusal] = planned(**{"budget.ram": 2_200_000_000}).refusals
    assert isinstance(refusal, BudgetExceeded)
    assert "Measuring the types of Q4_K_M_D needs" in str(refusal)


@pytest.mark.slow
def test_probes_go_in_as_many_walks_as_memory_has_room_for_and_measure_the_same(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed one goes on: the walks that are done are not walked again, the one that was killed not from the beginning."""
    settings = load_settings(None, {**flags(tmp_path), "variants": "Q4_K_M_D"})
    source = fetch_headers(
        str(tiny_model("llama")), Seen(), revision=None, into=tmp_path / "headers", allow_pickle=False
    )
    text = fetch_text(settings.calibration, Seen(), into=tmp_path / "text", characters=10_000)

    def types(at_once: int) -> dict[str, dict[str, str]]:
        work = tmp_path / str(at_once)
        work.mkdir(exist_ok=True)
        question = AllocateQuestion(
            source=source, settings=settings, work=work, mixes=("Q4_K_M",), text=text, at_once=at_once
        )
        found = child.allocate(question).types
        assert [path.name for path in work.iterdir() if path.name.startswith("walk-")] == []
        costs.append(json.loads((work / "costs.json").read_text()))
        return {mix: dict(kinds) for mix, kinds in found.items()}

    costs: list[dict[str, dict[str, float]]] = []
    whole = types(100)
    carried: list[str] = []
    advance = Passage.advance

    def killed(self: Passage, part: Part, decoders: Decoders) -> None:
        carried.append(part.name)
        if len(carried) == 4:
            raise KeyboardInterrupt
        advance(self, part, decoders)

    monkeypatch.setattr(CheckpointClock, "due", lambda *_: True)
    monkeypatch.setattr(Passage, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        types(4)
    assert types(4) == whole
    assert costs[0] == costs[1]
    first, second = carried[:2]
    assert carried == [first, second, first, second, second, first, second, first, second]


def kinds_of(path: Path) -> dict[str, str]:
    reader = llamacpp.gguf().GGUFReader(path)
    return {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


@pytest.mark.slow
def test_types_that_are_given_have_to_be_this_models(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    def reason(**changes: object) -> str:
        given = {**flags(tmp_path), "variants": "Q4_K_M,Q4_K_M_D", **changes}
        found = pipeline.plan(Run(model=str(tiny_model("llama")), settings=load_settings(None, given)), unconfined)
        return str(next(one.error for one in found.failed if one.name == "Q4_K_M_D"))

    other = {"Q4_K_M": {"blk.99.attn_q.weight": "Q6_K"}}
    assert "blk.99.attn_q.weight" in reason(**{"gguf.allocation": other})
    assert "static" in reason(**{"gguf.allocation": other, "gguf.imatrix": False})
    with pytest.raises(BadSettings, match="Q9_K"):
        load_settings(None, {"gguf.allocation": {"Q4_K_M": {"output.weight": "Q9_K"}}})


@pytest.mark.heavy
def test_stacks_of_experts_and_narrow_matrices_are_given_types_too(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    narrow = make_other("LlamaConfig", {"hidden_size": 96, "intermediate_size": 256}, tmp_path / "narrow")
    for model, part in ((tiny_model("mixtral"), "_exps"), (narrow, "ffn_up")):
        given = {**flags(tmp_path), "out": tmp_path / part, "variants": "Q4_K_M,Q4_K_M_D", "evaluation.samples": False}
        record = pipeline.run(Run(model=str(model), settings=load_settings(None, given)), unconfined).record
        plain, measured = record.variants
        assert (plain.reason, measured.reason) == (None, None)
        types = {tensor: kind for tensor, kind in measured.types.items() if part in tensor}
        assert types
        assert all((kind in NARROW) == (part == "ffn_up") for kind in types.values())
        kinds = kinds_of(tmp_path / part / measured.files[0].path)
        assert {tensor: kinds[tensor] for tensor in types} == types
        assert measured.files[0].size <= plain.files[0].size
        assert kinds != kinds_of(tmp_path / part / plain.files[0].path)
        assert measured.load_check is not None
        assert measured.load_check.passed
