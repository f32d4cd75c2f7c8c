"""What an earlier run has left is gone on with, or taken as the result, only where nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hubbot.child.messages import Made
from hubbot.domain import Record, Source
from hubbot.formats import put_in_place
from hubbot.formats.gguf.journal import Journal
from hubbot.formats.names import parse_variants
from hubbot.job import survey
from hubbot.job.resume import finished, forget_sweeps, keep_answer, kept_answer, sweep_folder
from hubbot.machine import Machine
from hubbot.machine.versions import version
from hubbot.record.file import write_record
from hubbot.record.fingerprint import shaping
from hubbot.settings import Settings, load_settings
from tests import records
from tests.child.test_messages import ANSWER

TEXTS = {"calibration": records.sha("a text"), "evaluation": records.sha("another")}
SETTINGS = load_settings(None, {"variants": "Q8_0,bnb-nf4"})


def source(**changes: object) -> Source:
    plain = records.record().source
    return replace(plain, **changes)  # type: ignore[arg-type]


def folder(made: Source | None = None, settings: Settings = SETTINGS, texts: dict[str, str] = TEXTS) -> Path:
    return sweep_folder(
        Path("work"), 0, source=made or source(), settings=settings, texts=texts, variants=["Q8_0", "bnb-nf4"]
    )


def test_the_same_job_finds_its_sweep_again_wherever_the_model_lies() -> None:
    assert folder() == folder(source(folder="/elsewhere/Testling-1B", revision="9" * 40))


@pytest.mark.parametrize(
    "other",
    [
        folder(source(files={**source().files, "README.md": records.sha("edited")})),
        folder(source(license="mit")),
        folder(settings=load_settings(None, {"publish.namespace": "ada"})),
        folder(settings=load_settings(None, {"publish.quantized_by": "ada"})),
        folder(settings=load_settings(None, {"gptq.damping": 0.5})),
        folder(settings=load_settings(None, {"force": True})),
        folder(texts={**TEXTS, "calibration": records.sha("edited")}),
        folder(texts={**TEXTS, "evaluation": records.sha("edited")}),
    ],
    ids=["readme", "licence", "namespace", "quantized-by", "damping", "force", "calibration-text", "evaluation-text"],
)
def test_a_sweep_is_not_gone_on_with_where_other_bytes_would_come_of_it(other: Path) -> None:
    assert other != folder()


def test_what_a_whole_sweep_has_come_to_is_kept_for_as_long_as_its_files_are_there(tmp_path: Path) -> None:
    file, reference = tmp_path / "m-Q8_0.gguf", tmp_path / "Q8_0.safetensors"
    made = Made(paths=(file,), bits_per_weight=8.5, notes=(), layer_errors={}, score=None, seconds=None)
    answer = replace(ANSWER, base=None, made={"Q8_0": made}, references={"Q8_0": reference})
    assert kept_answer(tmp_path) is None
    keep_answer(tmp_path, answer)
    assert kept_answer(tmp_path) is None
    file.touch()
    reference.touch()
    assert kept_answer(tmp_path) == answer
    (tmp_path / "answer.json").write_text("{}")  # of another version, say
    assert kept_answer(tmp_path) is None


def test_sweeps_of_other_jobs_are_dropped_and_ones_own_are_kept(tmp_path: Path) -> None:
    mine, other = tmp_path / "sweep-0-a", tmp_path / "sweep-0-b"
    for path in (mine, other, tmp_path / "source"):
        path.mkdir()
    forget_sweeps(tmp_path, but=[mine])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "sweep-0-a"]


def test_what_a_killed_sweep_has_finished_is_known_and_nothing_else(tmp_path: Path) -> None:
    work, out = tmp_path / "files", tmp_path / "out"
    for path in (out / "gguf" / "m-Q8_0.gguf", out / "gguf" / "m-Q4_0.gguf", out / "bnb" / "bnb-nf4" / "config.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert put_in_place(work, out) == []
    Journal(work / "gguf").complete(["m-Q8_0.gguf", "m-Q6_K.gguf"])  # killed before the second renaming
    (work / "bnb" / "bnb-int8.partial").mkdir(parents=True)  # killed before the renaming, an earlier release beside it
    (out / "bnb" / "bnb-int8").mkdir()
    (out / "bnb" / "bnb-int8" / "quantize_config.json").touch()
    for variant in ("bnb-nf4", "bnb-int8"):
        (work / "bnb" / f"{variant}.json").write_text("{}")
    assert [path.name for path in put_in_place(work, out)] == ["m-Q8_0.gguf", "config.json"]


@pytest.mark.parametrize("said", ['["../../x"]', '["a/b"]', '{"a": 1}', "[1]", "no JSON", "[" * 100_000])
def test_a_note_of_finished_files_that_names_others_or_is_none_counts_for_nothing(tmp_path: Path, said: str) -> None:
    journal = Journal(tmp_path / "gguf")
    journal.complete(["m-Q8_0.gguf"])
    assert journal.finals() == {"m-Q8_0.gguf"}
    [note] = (tmp_path / "gguf" / "parts").iterdir()
    note.write_text(said)
    assert journal.finals() == frozenset()


def test_a_plan_counts_the_finished_files_of_a_killed_run_as_free_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out = tmp_path / "out" / ".work", tmp_path / "out"
    file = out / "gguf" / "m-Q8_0.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(100_000))
    Journal(work / "sweep-0-a" / "files" / "gguf").complete([file.name])
    free = Machine(cpu="a CPU", cores=2, ram=1, ram_free=1, disk_free=1_000_000)
    monkeypatch.setattr(survey, "measure_machine", lambda *_, **__: free)
    assert survey.machine(work, out, "cpu").disk_free >= 1_100_000


@pytest.fixture
def done(tmp_path: Path) -> Record:
    """A run of SETTINGS, whole, in tmp_path."""
    made = records.record()
    assert made.calibration is not None
    assert made.evaluation is not None
    names = {variant.name for variant in parse_variants(SETTINGS.variants)}
    made = replace(
        made,
        hubbot={"version": version(), "commit": None},
        config=shaping(SETTINGS),
        variants=tuple(variant for variant in made.variants if variant.name in names),
        calibration=replace(made.calibration, text_sha256=TEXTS["calibration"]),
        evaluation=replace(made.evaluation, text_sha256=TEXTS["evaluation"]),
    )
    records.lay_files(made, tmp_path)
    write_record(made, tmp_path)
    return made


def found(out: Path, settings: Settings = SETTINGS, texts: dict[str, str] = TEXTS) -> Record | None:
    return finished(out, source(), settings, lambda: texts)


def test_the_same_job_is_finished_whoever_publishes_it(done: Record, tmp_path: Path) -> None:
    publishing = load_settings(None, {"variants": SETTINGS.variants, "publish.mode": "pr", "publish.namespace": "ada"})
    assert found(tmp_path) is not None
    assert found(tmp_path, publishing) is not None


@pytest.mark.parametrize("purpose", ["calibration", "evaluation"])
def test_a_text_that_was_edited_makes_another_job(done: Record, tmp_path: Path, purpose: str) -> None:
    assert found(tmp_path, texts={**TEXTS, purpose: records.sha("edited")}) is None


def test_the_texts_are_not_fetched_where_something_else_has_changed_already(done: Record, tmp_path: Path) -> None:
    def fetch() -> dict[str, str]:
        raise AssertionError

    assert finished(tmp_path, source(), load_settings(None, {"variants": "Q8_0"}), fetch) is None


def test_a_file_that_is_gone_is_made_again(done: Record, tmp_path: Path) -> None:
    (tmp_path / done.variants[0].files[0].path).unlink()
    assert found(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda made: replace(made, calibration=replace(made.calibration, overlap_forced=True)),
        lambda made: replace(made, calibration=replace(made.calibration, text_sha256=None)),
    ],
    ids=["forced", "unknown-text"],
)
def test_what_was_forced_or_made_of_an_unknown_text_counts_for_no_other_run(
    done: Record, tmp_path: Path, change: Callable[[Record], Record]
) -> None:
    write_record(change(done), tmp_path)
    assert found(tmp_path) is None
