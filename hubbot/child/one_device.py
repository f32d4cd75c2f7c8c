"""One sweep on one device: variants are made and measured."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hubbot.child.messages import Made, MakeAnswer, MakeQuestion
from hubbot.child.source import facts_of
from hubbot.child.walk import walk
from hubbot.child.windows import (
    calibration_record,
    conversations_record,
    cut_calibration,
    cut_conversations,
    cut_evaluation,
    evaluation_record,
)
from hubbot.formats import open_formats, overflows_of
from hubbot.formats.names import parse_variants
from hubbot.formats.protocol import VariantFiles, large_notes
from hubbot.model import ModelFacts, check_finite
from hubbot.model.agreement import agreed
from hubbot.model.config import alike_at_all_distances
from hubbot.model.digests import tokenizer_digest
from hubbot.model.empty import plain_config
from hubbot.model.finite import Large
from hubbot.model.own_tokenizer import load_tokenizer, loading_once, read_chat
from hubbot.sweep.group import ALONE, Group
from hubbot.sweep.references import References
from hubbot.sweep.streams import timed
from hubbot.sweep.walk import SweepResult
from hubbot.sweep.windows import Windows

__all__ = ["make_on"]

_REACH = 512  # tokens of a window that a runtime reads where they show what more would


@loading_once()
def make_on(question: MakeQuestion, device: str, group: Group = ALONE) -> MakeAnswer:
    """Make and measure the question's variants in one walk over the model.

    group: the processes that share the walk, of which this is one.
    """
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device))
    settings, texts = question.settings, question.texts
    seconds: dict[str, float] = {}
    with timed(seconds, "read the model"):
        facts = agreed(facts_of(question.source, settings, question.work))
        tokenizer = load_tokenizer(facts.folder)
    with timed(seconds, "check weights"):
        large = check_finite(facts.folder, facts)
        variants = parse_variants(",".join(question.variants))
        overflows = overflows_of(variants, question.source, facts, question.work / "large", settings, large)
    with timed(seconds, "cut texts"):
        calibration = cut_calibration(texts.calibration, tokenizer, facts, settings) if texts.calibration else None
        evaluation = cut_evaluation(texts.evaluation, tokenizer, facts, settings) if texts.evaluation else None
        spoken = cut_conversations(texts.conversations, tokenizer, facts, settings) if texts.conversations else None
        text = calibration_record(texts, calibration, evaluation, settings)
    with timed(seconds, "open files"):
        formats = open_formats(
            variants=[variant for variant in variants if variant.name not in overflows],
            source=question.source,
            facts=facts,
            work=question.work / "files",
            out=question.out,
            settings=settings,
            calibration=text,
            decoded=evaluation is not None,
            device=device,
        )
    references = _references(evaluation, facts) if evaluation else None
    result = walk(
        facts,
        formats,
        device=device,
        work=question.work,
        calibration=calibration,
        evaluation=evaluation,
        references=references,
        conversations=spoken,
        group=group,
        resumable=question.resumable,
    )
    return MakeAnswer(
        calibration=text,
        evaluation=evaluation_record(texts.evaluation, evaluation, settings)
        if texts.evaluation and evaluation
        else None,
        base=result.base,
        conversations=conversations_record(texts.conversations, spoken, result.conversations),
        made={name: _made(name, files, result, facts, large) for name, files in result.files.items()},
        failed={**overflows, **result.failed},
        seconds=seconds | result.seconds,
        references=references.save(question.work / "references") if references else {},
        chat_template=facts.chat_template,
        special_tokens={name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        experts=result.experts,
        tokenizer=tokenizer_digest(read_chat(facts.folder, tokenizer).tokens.text),
    )


def _references(evaluation: Windows, facts: ModelFacts) -> References:
    """What the load check compares: runtimes on a CPU read a quarter of a long window in a quarter of the time."""
    values = plain_config(facts.folder).get_text_config().to_dict()  # the class speaks where config.json is silent
    return References(evaluation, reach=_REACH if alike_at_all_distances(values, evaluation.length) else None)


def _made(name: str, files: VariantFiles, result: SweepResult, facts: ModelFacts, large: Mapping[str, Large]) -> Made:
    return Made(
        paths=files.paths,
        bits_per_weight=8 * files.weight_bytes / (files.weights or facts.parameters),
        notes=(*large_notes(large), *files.notes),
        layer_errors={**files.layer_errors, **result.layer_errors.get(name, {})},
        score=result.scores.get(name),
        seconds=result.seconds.get(name),
    )
