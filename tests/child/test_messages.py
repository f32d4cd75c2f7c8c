"""What passes between job and child has its type on both sides, and nothing else passes."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import ValidationError

from hubbot.child import messages
from hubbot.child.messages import CheckAnswer, Checked, EvaluateAnswer, MakeAnswer, MakeQuestion
from hubbot.confine.stage import Stage, decode, encode
from hubbot.domain import Perplexity, Text, Texts
from hubbot.settings import load_settings
from tests import records

STAGES = [value for value in vars(messages).values() if isinstance(value, Stage)]
ANSWER = MakeAnswer(
    calibration=None,
    evaluation=None,
    base=Perplexity(perplexity=math.nan, stderr=math.inf, tokens=3),
    made={},
    failed={"Q8_0": "no"},
    seconds={},
    references={"Q8_0": Path("/job/x")},
    chat_template=None,
    special_tokens={},
    tokenizer="0" * 64,
)


@pytest.mark.parametrize("stage", STAGES, ids=[stage.target for stage in STAGES])
def test_every_stage_is_a_function_of_its_question_that_gives_its_answer(stage: Stage[Any, Any]) -> None:
    module, name = stage.target.split(":")
    function = getattr(importlib.import_module(module), name)
    assert list(inspect.signature(function).parameters) == ["question"]
    assert get_type_hints(function) == {"question": stage.question, "return": stage.answer}


def test_the_messages_are_read_without_torch() -> None:
    code = "import sys, hubbot.child.messages; print({'torch', 'transformers'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


def test_a_question_arrives_as_it_was_asked() -> None:
    text = Text(path=Path("/job/a.jsonl"), name="a", revision=None, sha256="0" * 64)
    question = MakeQuestion(
        source=records.record().source,
        settings=load_settings(None, {"variants": "Q8_0", "budget.disk": "1GB", "out": Path("out")}),
        work=Path("/work"),
        out=Path("/out"),
        variants=("Q8_0",),
        texts=Texts(evaluation=text),
    )
    assert decode(MakeQuestion, encode(MakeQuestion, question)) == question


def test_numbers_that_are_none_arrive_as_such() -> None:
    base = decode(MakeAnswer, encode(MakeAnswer, ANSWER)).base
    assert base is not None
    assert math.isnan(base.perplexity)
    assert base.stderr == math.inf


def test_a_variant_keeps_its_files_and_its_score_whatever_the_check_answers() -> None:
    [variant, *_] = records.record().variants
    checked = Checked(load_check=None, samples=(), speed=None, notes=("seen",))
    answer = CheckAnswer(checked={variant.name: checked})
    told = decode(CheckAnswer, encode(CheckAnswer, answer)).checked[variant.name].of(variant)
    assert told == replace(variant, load_check=None, samples=(), speed=None, notes=("seen",))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"extra": 1}, "extra"),
        ({"made": []}, "made"),
        ({"base": {"perplexity": 1.0, "stderr": 1.0, "tokens": 1, "more": 2}}, "base.more"),
        ({"base": {"perplexity": "1.0", "stderr": 1.0, "tokens": 1}}, "base.perplexity"),
        ({"failed": {"Q8_0": "x" * 65_537}}, "failed.Q8_0"),
        ({"special_tokens": {"x" * 4_097: ""}}, "special_tokens"),
        ({"tokenizer": "../../x"}, "tokenizer"),
        ({"seconds": {"sweep": -1.0}}, "seconds.sweep"),
    ],
)
def test_an_answer_that_is_more_or_other_than_its_type_is_refused(change: dict[str, Any], where: str) -> None:
    told = json.loads(encode(MakeAnswer, ANSWER)) | change
    with pytest.raises(ValidationError) as caught:
        decode(MakeAnswer, json.dumps(told).encode())
    assert ".".join(map(str, caught.value.errors()[0]["loc"])).startswith(where)


def test_what_is_not_of_its_type_does_not_leave_the_process_either() -> None:
    with pytest.raises(TypeError, match="chat_template"):
        encode(MakeAnswer, replace(ANSWER, chat_template=Path("/template")))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="EvaluateAnswer"):
        encode(EvaluateAnswer, {"base": None})
