"""What was found out of a model is asked once, and again whenever anything that it follows from has changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from hubbot import environment
from hubbot.child import survey as surveying
from hubbot.child.messages import MAKE, SurveyAnswer, SurveyQuestion
from hubbot.child.survey import survey
from hubbot.confine import isolate, places
from hubbot.confine.isolate import Answer
from hubbot.confine.stage import Stage, decode, encode
from hubbot.confine.walls import Walls
from hubbot.errors import HubbotError, Unsupported
from hubbot.hub.client import Hub
from hubbot.hub.read.source import fetch, fetch_headers
from hubbot.job import basis as following
from hubbot.job import kept, pipeline
from hubbot.job.basis import basis
from hubbot.job.pipeline import Run
from hubbot.planning.plan import Plan
from hubbot.settings import Settings, load_settings
from tests.hub import Hub as Server
from tests.jobs import flags, unconfined
from tests.model.folders import change, copied

WALLS = Walls(files="landlock 7", network="seccomp", rights="none")
TESTS = Path(__file__).parents[1]


class Asked:
    """Stages asked in this process as if behind walls; each question is noted."""

    def __init__(self, walls: Walls = WALLS) -> None:
        self.questions: list[SurveyQuestion] = []
        self.walls = walls
        self.change: Callable[[SurveyAnswer], SurveyAnswer] = lambda answer: answer

    def __call__(self, stage: Stage[Any, Any], question: Any, **_: Any) -> Answer[Any]:
        self.questions.append(question)
        return Answer(value=self.change(unconfined(stage, question).value), walls=self.walls)


@pytest.fixture
def surveys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where entries go."""
    folder = tmp_path / "cache" / "surveys"
    monkeypatch.setenv("HUBBOT_SURVEYS", str(folder))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # which a survey in this process would set
    return folder


@pytest.fixture
def folder(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    return copied(tiny_model("llama"), tmp_path)


def planned(folder: Path, call: Any, **changes: Any) -> Plan:
    given = {"variants": "Q8_0,bnb-nf4", "out": folder.parent / "out", **changes}
    return pipeline.plan(Run(model=str(folder), settings=load_settings(None, given)), call)


def told(plan: Plan) -> Plan:
    """All but what is free at the moment."""
    return replace(plan, budget=plan.need)


def test_a_plan_that_was_made_before_starts_no_child_and_says_the_same(folder: Path, surveys: Path) -> None:
    call = Asked()
    first = planned(folder, call)
    assert told(planned(folder, call)) == told(first)
    other = {"benchmark": True, "gate.enabled": False, "budget.disk": "300GB", "out": folder.parent / "elsewhere"}
    assert told(planned(folder, call, **other)) == told(first)
    assert len(call.questions) == 1
    assert (surveys.stat().st_mode & 0o777, len(list(surveys.iterdir()))) == (0o700, 1)


def test_a_snapshot_of_the_clients_cache_is_asked_about_once_under_its_models_name(
    folder: Path, surveys: Path, tmp_path: Path
) -> None:
    snapshot, blobs = (tmp_path / "hub" / "models--ada--tiny" / name for name in (f"snapshots/{'a' * 40}", "blobs"))
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    call = Asked()
    first = planned(snapshot, call, out=tmp_path / "first")
    assert Path(first.model).name == "tiny"
    fetch(str(snapshot), Hub(), into=tmp_path / "first" / ".hubbot" / "source")  # as a run does after its plan
    for out in ("first", "second"):
        assert replace(told(planned(snapshot, call, out=tmp_path / out)), model=first.model) == told(first)
    assert len(call.questions) == 1
    weights = blobs / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    planned(snapshot, call, out=tmp_path / "second")
    assert len(call.questions) == 2


def test_a_run_after_its_plan_begins_with_the_sweep(folder: Path, surveys: Path, tmp_path: Path) -> None:
    call, given = Asked(), {"variants": "Q8_0", "licence.allow_unlicensed": True, "device": "cpu"}
    settings = load_settings(None, {**flags(tmp_path), **given})
    pipeline.plan(Run(model=str(folder), settings=settings), call)
    assert [type(one) for one in call.questions] == [SurveyQuestion]
    asked: list[str] = []

    def stop(stage: Stage[Any, Any], *_: Any, **__: Any) -> Any:
        asked.append(stage.target)
        raise _Again

    for _ in ("begun", "gone on with"):
        with pytest.raises(_Again):
            pipeline.run(Run(model=str(folder), settings=settings), stop)
    assert asked == ["hubbot.child.make:make"] * 2


def test_where_nobody_has_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert environment.surveys({}) is None
    assert environment.surveys({"HUBBOT_SURVEYS": "/x"}) == Path("/x")


def test_a_budget_and_an_evaluation_text_count_though_the_answer_is_kept(folder: Path, surveys: Path) -> None:
    call, text = Asked(), folder.parent / "text.txt"
    text.write_text("one two three " * 2000)
    changed = {"evaluation.dataset": str(text)}
    long = planned(folder, call, **changed)
    text.write_text("one two three")
    short = planned(folder, call, **changed)
    assert short.need.ram < long.need.ram
    assert planned(folder, call, **changed, **{"budget.ram": "1GB"}).refusals
    assert len(call.questions) == 1


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "README.md", "model.safetensors", "new.txt"])
def test_a_changed_file_of_the_model_is_asked_about_again(folder: Path, surveys: Path, name: str) -> None:
    before, path = basis(source_of(folder), Settings()), folder / name
    data = bytearray(path.read_bytes() if path.exists() else b"x")
    data[-1] ^= 1
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns) if path.exists() else None
    path.write_bytes(data)
    if times:
        os.utime(path, ns=times)  # neither its length nor its time says so
    assert before is not None
    assert basis(source_of(folder), Settings()) not in (before, None)


def source_of(folder: Path) -> Any:
    return fetch_headers(str(folder), Hub(), into=folder.parent / "headers", hashed=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"variants": "Q4_0"},
        {"device": "cpu"},
        {"gguf.imatrix": False},
        {"gptq.lm_head": True},
        {"calibration.dataset": "a/b"},
        {"publish.quantized_by": "ada"},
        {"force": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_setting_that_the_answer_may_follow_from_is_another_question(
    folder: Path, surveys: Path, changes: dict[str, Any]
) -> None:
    call = Asked()
    planned(folder, call)
    with pytest.raises(_Again):
        planned(folder, _again, **changes)


class _Again(Exception):
    pass


def _again(*_: Any, **__: Any) -> Any:
    raise _Again


def test_another_package_hubbot_llama_cpp_or_environment_is_another_basis(
    folder: Path, surveys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, own, llama = tmp_path / "site-packages", tmp_path / "own" / "hubbot", tmp_path / "llama"
    files = [packages / "torch-2.0.dist-info" / "RECORD", own / "a.py", llama / "build" / "bin" / "libllama.so"]
    files += [llama / "source" / "conversion" / "base.py", packages / "more.pth"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("one")
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("HUBBOT_LLAMA_CPP", str(llama))
    monkeypatch.setattr(following, "HUBBOT", own)
    monkeypatch.setattr(places, "HUBBOT", own)
    source = source_of(folder)
    seen = [basis(source, Settings())]
    assert seen == [basis(source, Settings())]
    for file in files:
        file.write_text("two")
        seen.append(basis(source, Settings()))
    (packages / "torch-2.0.dist-info").rename(packages / "torch-2.1.dist-info")
    seen.append(basis(source, Settings()))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    seen.append(basis(source, Settings()))
    assert None not in seen
    assert len(set(seen)) == len(seen)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    assert basis(source, Settings()) is None


def test_headers_of_the_hub_are_the_same_question_wherever_they_were_put(
    folder: Path, surveys: Path, tmp_path: Path
) -> None:
    other = tmp_path / "b"
    shutil.copytree(folder, other)
    here, there = (replace(source_of(one), repo="a/b", revision="0" * 40) for one in (folder, other))
    assert basis(here, Settings()) == basis(there, Settings()) is not None
    assert basis(replace(here, revision="1" * 40), Settings()) != basis(here, Settings())
    change(other / "config.json", rms_norm_eps=1e-3)
    assert basis(there, Settings()) != basis(here, Settings())


def test_the_hub_is_asked_which_commit_it_is_though_the_answer_is_kept(
    hub: Server, folder: Path, surveys: Path, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.model("ada/tiny", files)
    call = Asked()

    def ask(out: str) -> Plan:
        settings = load_settings(None, {"variants": "Q8_0", "out": tmp_path / out})
        return pipeline.plan(Run(model="ada/tiny", settings=settings, hub=hub.seen()), call)

    assert told(ask("one")) == told(ask("two"))
    assert len(call.questions) == 1
    hub.model("ada/tiny", {**files, "config.json": json.dumps({**json.loads(files["config.json"]), "x": 1}).encode()})
    assert ask("one").revision != ask("two").revision or len(call.questions) == 2
    assert len(call.questions) == 2


def damaged(entry: Path) -> dict[str, bytes]:
    whole = entry.read_bytes()
    head, _, body = whole.partition(b"\n")
    values = json.loads(body)
    name = entry.stem

    def signed(values: dict[str, Any]) -> bytes:
        return kept._head(name, data := json.dumps(values).encode()) + b"\n" + data

    return {
        "cut": whole[:-9],
        "one bit": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "empty": b"",
        "of another question": head.replace(name[:8].encode(), b"00000000", 1) + b"\n" + body,
        "a key too many": signed({**values, "more": 1}),
        "a number of another type": signed({**values, "shapes": {**values["shapes"], "hidden": "64"}}),
        "a number out of bounds": signed({**values, "shapes": {**values["shapes"], "hidden": -1}}),
    }


def test_an_entry_that_is_damaged_or_of_another_shape_is_as_if_it_were_not_there(folder: Path, surveys: Path) -> None:
    call = Asked()
    first = planned(folder, call)
    [entry] = surveys.iterdir()
    whole = entry.read_bytes()
    assert kept.read(entry.stem) is not None
    for what, data in damaged(entry).items():
        entry.write_bytes(data)
        assert kept.read(entry.stem) is None, what
    assert told(planned(folder, call)) == told(first)
    assert len(call.questions) == 2
    assert entry.read_bytes() == whole


def test_nothing_is_kept_without_walls_or_of_what_may_pass(folder: Path, surveys: Path) -> None:
    planned(folder, Asked(replace(WALLS, files="none")))
    assert not surveys.exists()
    passing = Asked()
    passing.change = lambda answer: replace(answer, lasting=False)
    planned(folder, passing)
    assert not surveys.exists()
    changed = Asked()

    def written(answer: SurveyAnswer) -> SurveyAnswer:
        (folder / "config.json").write_text("{}")
        return answer

    changed.change = written
    planned(folder, changed)
    assert not surveys.exists(), "the folder was written while it was read"


@pytest.mark.parametrize("place", ["", "out/.work/surveys"])
def test_nothing_is_kept_where_children_write_or_where_it_is_not_wanted(
    folder: Path, surveys: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("HUBBOT_SURVEYS", place and str(folder.parent / place))
    call = Asked()
    planned(folder, call)
    planned(folder, call)
    assert len(call.questions) == 2
    assert not any(path.exists() for path in (surveys, folder.parent / "out/.work/surveys"))


def test_a_tools_refusal_does_not_last_and_a_shapes_does(
    folder: Path, surveys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lasting(names: str) -> bool:
        settings = load_settings(None, {"variants": names, "device": "cpu"})
        return survey(SurveyQuestion(source=source_of(folder), settings=settings, work=tmp_path / "work")).lasting

    assert lasting("Q8_0,gptq-4bit-128g")  # whose width it has not

    def refuse(*_: Any, **__: Any) -> Any:
        raise Unsupported("llama.cpp did not answer within 60 s")

    monkeypatch.setattr("hubbot.formats.gguf.format.plan_unread", refuse)
    assert not lasting("Q8_0,gptq-4bit-128g")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the tokenizers that transformers reads."""
    read: list[str] = []
    load = PreTrainedTokenizerBase._from_pretrained.__func__

    def noted(kind: Any, *args: Any, **options: Any) -> Any:
        read.append(kind.__name__)
        return load(kind, *args, **options)

    monkeypatch.setattr(PreTrainedTokenizerBase, "_from_pretrained", classmethod(noted))
    return read


@pytest.mark.parametrize(
    ("family", "alone"), [("llama", 2), ("gpt2", 3)]
)  # llama's the converter reads by SentencePiece
def test_transformers_reads_a_tokenizer_once_for_a_survey_which_says_the_same(
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loads: list[str],
    family: str,
    alone: int,
) -> None:
    settings = load_settings(None, {"variants": "Q8_0,Q4_0", "device": "cpu"})
    question = SurveyQuestion(source=source_of(tiny_model(family)), settings=settings, work=tmp_path / "work")
    found = survey(question)
    assert (list(found.prices), len(loads)) == (["Q8_0", "Q4_0"], 1)
    monkeypatch.setattr(surveying, "loading_once", nullcontext)
    assert survey(question) == found
    assert len(loads) == 1 + alone


@pytest.mark.slow
def test_transformers_reads_a_tokenizer_once_for_all_that_is_made(
    tiny_model: Callable[..., Path], tmp_path: Path, loads: list[str]
) -> None:
    def made(stage: Stage[Any, Any], question: Any, **_: Any) -> Any:
        loads.clear()
        answer = unconfined(stage, question)
        if stage is MAKE:
            raise _Again
        return answer

    given = {"variants": "Q8_0,Q4_0", "licence.allow_unlicensed": True, "device": "cpu"}
    with pytest.raises(_Again):
        pipeline.run(
            Run(model=str(tiny_model("gpt2")), settings=load_settings(None, {**flags(tmp_path), **given})), made
        )
    assert len(loads) == 1


def test_the_oldest_entries_go(folder: Path, surveys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(folder, Asked())
    [entry] = surveys.iterdir()
    answer = kept.read(entry.stem)
    assert answer is not None
    monkeypatch.setattr(kept, "_MOST", 3)
    os.utime(entry, (1, 1))
    for number in range(3):
        kept.write(f"{number:064d}", answer)
        os.utime(surveys / f"{number:064d}.json", (10 + number, 10 + number))
    assert sorted(path.stem for path in surveys.iterdir()) == [f"{number:064d}" for number in range(3)]
    monkeypatch.setattr(kept, "_LARGEST", 100)
    kept.write("f" * 64, answer)
    assert kept.read("f" * 64) is None


def test_what_the_child_claims_is_bounded_and_answers_what_was_asked(folder: Path, surveys: Path) -> None:
    call = Asked()
    planned(folder, call)
    [entry] = surveys.iterdir()
    answer = kept.read(entry.stem)
    assert answer is not None
    price = answer.prices["Q8_0"]
    for wrong in (
        replace(answer, prices={**answer.prices, "Q8_0": replace(price, probes=2**40)}),
        replace(answer, prices={**answer.prices, "Q8_0": replace(price, bits_per_weight=float("inf"))}),
        replace(answer, shapes=replace(answer.shapes, block_weights=0)),
        replace(answer, shapes=replace(answer.shapes, widest=2**70)),
        replace(answer, device="/dev/sda"),
    ):
        with pytest.raises(ValueError, match="validation error"):
            decode(SurveyAnswer, encode(SurveyAnswer, wrong))
    for other in (replace(answer, variants=("Q8_0", "Q4_0")), replace(answer, prices={"Q8_0": price})):
        call.change = lambda _, other=other: other  # type: ignore[misc]
        with pytest.raises(HubbotError, match="The confined process was asked for"):
            planned(folder, call, **{"gguf.imatrix": False})


def test_the_child_is_told_of_no_setting_that_is_not_part_of_the_question(folder: Path, surveys: Path) -> None:
    call = Asked()
    secret = {"publish.namespace": "ada", "publish.mode": "pr", "budget.ram": "3GB", "licence.allow_unlicensed": True}
    planned(folder, call, **secret)
    [question] = call.questions
    plain = Settings()
    assert question.settings.publish == plain.publish.model_copy(update={"quantized_by": "ada"})
    assert (question.settings.budget, question.settings.licence) == (plain.budget, plain.licence)
    assert set(question.source.files.values()) == {""}


@pytest.mark.slow
def test_behind_real_walls_an_answer_is_kept_and_no_child_can_write_one(
    folder: Path, surveys: Path, tmp_path: Path
) -> None:
    first = planned(folder, isolate.call)
    if not surveys.exists():
        pytest.skip("this kernel builds no walls")
    assert told(planned(folder, _again)) == told(first)
    [entry] = surveys.iterdir()
    ways = [{"do": way, "path": str(path)} for way in ("write", "remove", "read") for path in (entry,)]
    ways += [{"do": "write", "path": str(surveys / f"{'0' * 64}.json")}]
    inside: Stage[Any, Any] = Stage(target="inside:attempts", question=Any, answer=Any)
    environ = os.environ | {"PYTHONPATH": str(TESTS)}
    work = tmp_path / "out" / ".work"
    said = isolate.call(inside, ways, work=work, writable=[tmp_path / "out"], environ=environ).value
    assert said == ["PermissionError"] * len(ways)
    assert list(surveys.iterdir()) == [entry]
