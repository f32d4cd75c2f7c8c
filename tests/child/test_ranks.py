"""A sweep that several processes share gives what one gives."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from itertools import chain
from pathlib import Path

import pytest

from hubbot.child.make import make_on
from hubbot.child.messages import MakeAnswer, MakeQuestion
from hubbot.child.ranks import deal
from hubbot.confine.isolate import call
from hubbot.confine.stage import Stage
from hubbot.domain import Source, Text, Texts
from hubbot.errors import HubbotError, Unsupported
from hubbot.formats.names import parse_variants
from hubbot.settings import Settings, load_settings
from tests.jobs import write_texts
from tests.models import make_model

TESTS = Path(__file__).parents[1]
VARIANTS = ("Q8_0", "Q4_K_M", "gptq-4bit-32g", "gptq-8bit-32g", "bnb-nf4")


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> MakeQuestion:
    folder = tmp_path_factory.mktemp("ranks")
    model = make_model("llama", folder / "model")
    paths = dict(zip(("calibration", "evaluation"), write_texts(folder), strict=True))
    texts = {name: Text(path=path, name=name, revision=None, sha256="0" * 64) for name, path in paths.items()}
    source = Source(folder=str(model), repo=None, revision=None, files={})
    return MakeQuestion(
        source=source,
        settings=_settings(),
        work=folder,
        out=folder,
        variants=VARIANTS,
        texts=Texts(**texts),
    )


def _settings() -> Settings:
    small = {"samples": 70, "length": 64}  # two batches, so that both processes have windows
    flags = {f"calibration.{name}": value for name, value in small.items()}
    return load_settings(None, flags | {"evaluation.context": 64, "evaluation.windows": 70, "device": "cpu"})


def _at(question: MakeQuestion, place: Path) -> MakeQuestion:
    for folder in (place / "work", place / "out"):
        folder.mkdir(parents=True)
    return replace(question, work=place / "work", out=place / "out")


def _ask(target: str, question: MakeQuestion) -> MakeAnswer:
    stage = Stage(target=f"tests.child.two_ranks:{target}", question=MakeQuestion, answer=MakeAnswer)
    readable = [
        TESTS,
        Path(question.source.folder),
        *(text.path for text in (question.texts.calibration, question.texts.evaluation) if text),
    ]
    return call(stage, question, work=question.work, writable=[question.out], readable=readable).value


@pytest.mark.slow
def test_two_processes_behind_walls_make_what_one_makes(question: MakeQuestion, tmp_path: Path) -> None:
    alone = make_on(_at(question, tmp_path / "one"), "cpu")
    shared = _ask("on_two", _at(question, tmp_path / "two"))
    assert list(shared.made) == list(alone.made) == list(VARIANTS)
    assert (shared.base, shared.calibration, shared.evaluation) == (alone.base, alone.calibration, alone.evaluation)
    assert shared.references.keys() == alone.references.keys()
    for name, made in shared.made.items():
        assert made.score
        assert made.score.kld.mean == pytest.approx(alone.made[name].score.kld.mean, rel=0.02), name
    for name in (
        "Q8_0",
        "bnb-nf4",
    ):  # nothing of the calibration is in them; a CPU's sums of it end with other last bits
        assert _digests(shared, name, tmp_path / "two") == _digests(alone, name, tmp_path / "one")


def _digests(answer: MakeAnswer, name: str, place: Path) -> dict[str, str]:
    files = [
        path
        for path in answer.made[name].paths
        if path.suffix in {".gguf", ".safetensors"} and "imatrix" not in path.name
    ]
    return {str(path.relative_to(place)): sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_what_stops_one_process_stops_all_and_is_told(question: MakeQuestion, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="the second card's own reason"):
        _ask("on_two_of_which_one_refuses", _at(question, tmp_path / "refused"))
    with pytest.raises(Unsupported, match="the third card's own reason"):  # and not that the second lost it
        _ask("on_three_of_which_the_last_refuses", _at(question, tmp_path / "third"))
    with pytest.raises(HubbotError, match="The process of cpu failed with RuntimeError: the driver does not start"):
        _ask("on_two_of_which_one_fails", _at(question, tmp_path / "failed"))
    with pytest.raises(HubbotError, match="The process of card 1 ended with 7 and without an answer"):
        _ask("on_two_of_which_one_dies", _at(question, tmp_path / "dead"))


def test_variants_are_dealt_by_cost_and_what_shares_a_solution_stays_together() -> None:
    names = "Q8_0,Q6_K,Q5_K_M,Q4_K_M,gptq-4bit-128g,gptq-8bit-128g,w4a16-128g,bnb-nf4"
    hands = [[variant.name for variant in hand] for hand in deal(parse_variants(names), 2, _settings())]
    assert sorted(chain(*hands)) == sorted(names.split(","))
    assert all(sum(name.startswith("gptq") for name in hand) == 1 for hand in hands)
    assert next(hand for hand in hands if "gptq-4bit-128g" in hand).count("w4a16-128g") == 1
    assert len(deal(parse_variants("Q8_0,Q6_K"), 4, _settings())) == 2
