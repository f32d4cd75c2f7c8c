"""One model through the survey, one sweep of every family, and each file in its own runtime."""

from __future__ import annotations

import json
import math
import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig

from hubbot.child.images import Gallery
from hubbot.child.make import make
from hubbot.child.messages import MakeAnswer, MakeQuestion
from hubbot.child.source import examine, facts_of
from hubbot.child.windows import cut_evaluation
from hubbot.domain import Source, Text, Texts
from hubbot.errors import HubbotError, Unsupported
from hubbot.formats import FAMILIES, costs_of
from hubbot.formats.names import parse_variants
from hubbot.formats.protocol import Cost
from hubbot.model.absent import parts_left_out
from hubbot.model.architectures import sees_images
from hubbot.model.config import read_config
from hubbot.model.empty import auto_class
from hubbot.model.own_tokenizer import load_tokenizer, read_chat
from hubbot.settings import Settings
from tests.conformance.models import write_tiny
from tests.gpt2 import teach_converter
from tests.models import texts

__all__ = ["COLUMNS", "Outcome", "try_architecture"]

# Column of the table -> the variant that stands for it.
COLUMNS = {
    "GGUF": "Q8_0",
    "imatrix": "Q4_K_M",
    "GPTQ": "gptq-4bit-32g",
    "W4A16": "w4a16-32g",
    "bitsandbytes": "bnb-nf4",
}
_SETTINGS = {
    "calibration": {"samples": 4, "length": 64},
    "evaluation": {"context": 64, "windows": 4, "samples": False},
    "device": "cpu",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """kind: passes, refused (in the plan), failed (later, or its runtime computes something else), crashed (no sentence),
    unseen (an image was read in llama.cpp alone)."""

    kind: str
    told: str = ""
    divergence: float | None = None  # of the runtime from the sweep, nats


T = TypeVar("T")
Answers = dict[str, Outcome]  # "base" and the columns


def try_architecture(architecture: str, work: Path) -> Answers:
    """base: passes where the sweep's perplexity is plain transformers' to 1e-6."""
    try:
        folder = write_tiny(architecture, work / "tiny")
    except Exception as error:  # noqa: BLE001 - a row says what came of it
        return _without_a_model(architecture, error, work)
    teach_converter()
    files = {path.name: "" for path in folder.iterdir()}
    source = Source(folder=str(folder), repo=None, revision=None, files=files, license="mit", architecture=architecture)
    settings = Settings.model_validate({**_SETTINGS, "variants": ",".join(COLUMNS.values()), "out": str(work / "out")})
    outcomes: Answers = {}
    try:
        facts = examine(facts_of(source, settings, work))
        costs = costs_of(parse_variants(settings.variants), source, facts, work / "plan", settings)
    except Exception as error:  # noqa: BLE001 - a row says what came of it
        return dict.fromkeys(["base", *COLUMNS], _outcome(error, "refused"))
    refused = {name: _outcome(cost, "refused") for name, cost in costs.items() if not isinstance(cost, Cost)}
    makeable = [name for name in costs if name not in refused]
    by_variant = refused | (_made(makeable, source, settings, work, outcomes) if makeable else {})
    return outcomes | {column: by_variant[name] for column, name in COLUMNS.items()}


def _without_a_model(architecture: str, error: Exception, work: Path) -> Answers:
    """What hubbot says of the class by its configuration alone, where it refuses that; else why there is no tiny model."""
    path = work / "config.json"
    path.write_text(json.dumps({"architectures": [architecture], "model_type": "unknown"}), encoding="utf-8")
    try:
        read_config(path)
    except Unsupported as refusal:
        return dict.fromkeys(["base", *COLUMNS], _outcome(refusal, "refused"))
    except HubbotError:
        pass
    return {"base": Outcome(kind="no model", told=_said(error))}


def _made(names: list[str], source: Source, settings: Settings, work: Path, outcomes: Answers) -> dict[str, Outcome]:
    """Variant -> what became of it; notes the base's outcome too."""
    question = MakeQuestion(
        source=source, settings=settings, work=work / "work", out=work / "out", variants=tuple(names), texts=_texts(work)
    )  # fmt: skip
    for folder in (question.work, question.out):
        folder.mkdir(exist_ok=True)
    try:
        answer = make(question)
    except Exception as error:  # noqa: BLE001 - a row says what came of it
        outcomes["base"] = _outcome(error, "failed")
        return dict.fromkeys(names, outcomes["base"])
    outcomes["base"] = _attempt(lambda: _compare_base(source, settings, question, answer))
    if seen := _attempt(lambda: _see(source, answer, work)):
        outcomes["mmproj"] = seen
    failed = {name: Outcome(kind="failed", told=why) for name, why in answer.failed.items()}
    in_turn = sorted(
        answer.made, key=lambda name: name == COLUMNS["GPTQ"]
    )  # last, for it changes transformers' classes
    return failed | {name: _attempt(lambda name=name: _read(name, answer)) for name in in_turn}  # type: ignore[misc]


def _compare_base(source: Source, settings: Settings, question: MakeQuestion, answer: MakeAnswer) -> Outcome:
    folder = Path(source.folder)
    assert answer.base
    assert question.texts.evaluation
    windows = cut_evaluation(
        question.texts.evaluation, load_tokenizer(folder), facts_of(source, settings, question.work), settings
    )
    config = AutoConfig.from_pretrained(folder)
    with parts_left_out(config):
        model = auto_class(config).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        told = torch.cat([model(row[None]).logits[0, :-1].double().log_softmax(-1) for row in windows.tokens])
    plain = math.exp(-told.gather(1, windows.tokens[:, 1:].reshape(-1, 1)).mean())
    apart = abs(answer.base.perplexity / plain - 1)
    if apart > 1e-6:
        return Outcome(kind="failed", told=f"perplexity {answer.base.perplexity:.6g}, in transformers {plain:.6g}")
    return Outcome(kind="passes", divergence=apart)


def _read(name: str, answer: MakeAnswer) -> Outcome:
    family = parse_variants(name)[0].family
    check = FAMILIES[family].read(answer.made[name].paths, answer.references.get(name)).check
    if check.passed:
        return Outcome(kind="passes", divergence=check.kld)
    told = check.error or f"its runtime computes something else: divergence {check.kld}"
    return Outcome(kind="failed", told=told, divergence=check.kld)


def _see(source: Source, answer: MakeAnswer, work: Path) -> Outcome | None:
    """The test image with the files that see, in llama.cpp and in transformers; nothing of a model of text alone."""
    made = answer.made.get(COLUMNS["GGUF"])
    if not sees_images(source.architecture) or made is None:
        return None
    folder = Path(source.folder)
    tokenizer = load_tokenizer(folder)
    ends = read_chat(folder, tokenizer).tokens.ends
    shown = Gallery(folder, work, tokenizer, ends, fits=True, device="cpu").show(made.paths)
    if not shown:
        return Outcome(kind="refused", told=next(note for note in made.notes if "sees images" in note))
    worst = max(shown, key=lambda image: (not image.passed, image.distance or math.inf))
    if worst.passed and worst.distance is None:
        return Outcome(kind="unseen", told=worst.error or "")
    if not worst.passed or worst.distance is None:
        return Outcome(kind="failed", told=worst.error or "other embeddings", divergence=worst.distance)
    return Outcome(kind="passes", divergence=worst.distance)


def _attempt(step: Callable[[], T]) -> T | Outcome:
    try:
        return step()
    except Exception as error:  # noqa: BLE001 - a row says what came of it
        return _outcome(error, "failed")


def _outcome(error: Exception, kind: str) -> Outcome:
    """A sentence of hubbot's own, or a crash."""
    if isinstance(error, HubbotError):
        return Outcome(kind=kind, told=" ".join(str(error).split()))
    if os.environ.get("HUBBOT_CONFORMANCE_TRACE"):
        traceback.print_exception(error)
    return Outcome(kind="crashed", told=_said(error))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _texts(work: Path) -> Texts:
    found: Mapping[str, list[str]] = {"calibration": texts()[::2], "evaluation": texts()[1::2]}
    written: dict[str, Any] = {}
    for name, pieces in found.items():
        path = work / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), encoding="utf-8")
        digest = sha256(path.read_bytes()).hexdigest()
        written[name] = Text(path=path, name=name, revision=None, sha256=digest)
    return Texts(**written)
