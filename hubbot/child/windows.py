"""The windows that a model is calibrated and evaluated on, and how the record tells of them."""

from __future__ import annotations

import json
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from hubbot import log
from hubbot.cards.prompt import conversations_written
from hubbot.domain import Conversations, Text, TextRecord, Texts
from hubbot.errors import BadText
from hubbot.model import ModelFacts
from hubbot.settings import Settings
from hubbot.sweep.judge import Verdicts
from hubbot.sweep.windows import Windows, calibration_windows, conversation_windows, evaluation_windows, overlap

__all__ = [
    "calibration_record",
    "conversations_record",
    "cut_calibration",
    "cut_conversations",
    "cut_evaluation",
    "evaluation_record",
]

_DATE = "2026-01-01"  # that a template writes into a conversation: a text is the same on every day
_ANY = 2**31  # tokens: of a model that says nothing of its context


def cut_calibration(text: Text, tokenizer: PreTrainedTokenizerBase, facts: ModelFacts, settings: Settings) -> Windows:
    return calibration_windows(
        text.path,
        tokenizer,
        samples=settings.calibration.samples,
        length=min(settings.calibration.length, facts.context_length or _ANY),
        seed=settings.calibration.seed,
        vocab=facts.vocab_size,
    )


def cut_evaluation(text: Text, tokenizer: PreTrainedTokenizerBase, facts: ModelFacts, settings: Settings) -> Windows:
    return evaluation_windows(
        text.path,
        tokenizer,
        length=min(settings.evaluation.context, facts.context_length or _ANY),
        stride=settings.evaluation.stride,
        limit=settings.evaluation.windows,
        vocab=facts.vocab_size,
    )


def cut_conversations(
    text: Text, tokenizer: PreTrainedTokenizerBase, facts: ModelFacts, settings: Settings
) -> Windows | None:
    """Conversations as the model's chat template writes them; None where there is no template, or it writes too little.

    Raises BadText where a template that writes all of them does not fill a window.
    """
    if facts.chat_template is None or settings.spoken is None:
        return None
    with text.path.open(encoding="utf-8") as lines:
        conversations = [json.loads(line)["messages"] for line in lines]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    written = conversations_written(facts.chat_template, special, conversations, date=_DATE)
    if written.reason:
        log.say(
            f"note: the chat template writes {len(written.texts)} of {len(conversations)} conversations of {text.name}: {written.reason}"
        )
    if not written.texts:
        return None
    try:
        return conversation_windows(
            written.texts,
            tokenizer,
            name=text.name,
            length=min(settings.evaluation.context, facts.context_length or _ANY),
            limit=settings.spoken.windows,
            vocab=facts.vocab_size,
        )
    except BadText as error:
        if not written.reason:
            raise
        log.say(f"note: nothing is measured in chat, for the template writes too little of them: {error}")
        return None


def conversations_record(text: Text | None, windows: Windows | None, found: Verdicts | None) -> Conversations | None:
    """What was measured on them, as the record has it."""
    if text is None or windows is None or found is None:
        return None
    return Conversations(text=_record(text, windows), base=found.base, scores=found.scores)


def calibration_record(
    texts: Texts, calibration: Windows | None, evaluation: Windows | None, settings: Settings
) -> TextRecord | None:
    """The calibration as the record has it. Raises BadText where it overlaps the evaluation, unless forced."""
    text = texts.calibration
    if text is None or calibration is None:
        return None
    overlaps = _overlaps(texts, calibration, evaluation)
    if overlaps and not settings.force:
        msg = (
            f"{overlaps}: a variant calibrated on the text that "
            "it is measured on looks better than it is. Name another calibration or evaluation text; "
            "--force goes on and says so in the card."
        )
        raise BadText(msg)
    seed = settings.calibration.seed
    return replace(_record(text, calibration), seed=seed, overlap_forced=bool(overlaps))


def _overlaps(texts: Texts, calibration: Windows, evaluation: Windows | None) -> str:
    """What of the calibration text stands in the evaluation text; empty: nothing."""
    if texts.calibration is None or texts.evaluation is None or evaluation is None:
        return ""
    where = f"stand in the evaluation text ({texts.evaluation.name})"
    if shared := overlap(calibration, evaluation):
        return f"{shared} of {calibration.count} calibration windows {where}"
    return f"The same dataset and split {where}" if texts.calibration.name == texts.evaluation.name else ""


def evaluation_record(text: Text, evaluation: Windows, settings: Settings) -> TextRecord:
    return replace(_record(text, evaluation), stride=settings.evaluation.stride or evaluation.length)


def _record(text: Text, windows: Windows) -> TextRecord:
    return TextRecord(
        dataset=text.name,
        revision=text.revision,
        sha256=windows.sha256,
        windows=windows.count,
        length=windows.length,
        text_sha256=text.sha256,
    )
