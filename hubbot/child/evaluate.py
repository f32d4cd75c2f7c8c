"""Artefacts made elsewhere, measured against their base model."""

from __future__ import annotations

from typing import cast

from hubbot.child.device import settle_device
from hubbot.child.messages import EvaluateAnswer, EvaluateQuestion
from hubbot.child.source import facts_of
from hubbot.child.walk import walk
from hubbot.child.windows import conversations_record, cut_conversations, cut_evaluation, evaluation_record
from hubbot.domain import Perplexity
from hubbot.errors import BadText
from hubbot.formats.foreign import artefact_names, read_artefact, weight_bytes
from hubbot.model import check_finite
from hubbot.model.agreement import agreed
from hubbot.model.own_tokenizer import load_tokenizer

__all__ = ["evaluate"]


def evaluate(question: EvaluateQuestion) -> EvaluateAnswer:
    """Measure finished artefacts against their base model. Raises BadText where there is no text to measure on."""
    settings = question.settings
    facts = agreed(facts_of(question.source, settings, question.work))
    check_finite(facts.folder, facts)
    names = artefact_names(question.paths)
    artefacts = {name: read_artefact(path, facts, name) for path, name in names.items()}
    if question.text is None:
        msg = "There is no evaluation text to measure on. Name one with --evaluation."
        raise BadText(msg)
    tokenizer, heard = load_tokenizer(facts.folder), question.conversations
    windows = cut_evaluation(question.text, tokenizer, facts, settings)
    spoken = cut_conversations(heard, tokenizer, facts, settings) if heard else None
    result = walk(
        facts,
        list(artefacts.values()),
        device=settle_device(settings.device),
        work=question.work,
        calibration=None,
        evaluation=windows,
        conversations=spoken,
    )
    base = cast("Perplexity", result.base)  # there was text to measure on
    return EvaluateAnswer(
        evaluation=evaluation_record(question.text, windows, settings),
        base=base,
        scores={name: result.scores[name] for name in artefacts},
        sizes={name: weight_bytes(path) for path, name in names.items()},
        families={name: artefact.made_by for name, artefact in artefacts.items()},
        conversations=conversations_record(heard, spoken, result.conversations),
    )
