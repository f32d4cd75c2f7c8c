"""The windows that a model is calibrated and evaluated on, and how the record tells of them."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from hubbot.domain import Text, TextRecord, Texts
from hubbot.errors import BadText
from hubbot.model import ModelFacts
from hubbot.settings import Settings
from hubbot.sweep.windows import Windows, calibration_windows, evaluation_windows, overlap

__all__ = ["calibration_record", "cut_calibration", "cut_evaluation", "evaluation_record"]

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
    return TextRecord(
        dataset=text.name,
        revision=text.revision,
        sha256=calibration.sha256,
        windows=calibration.count,
        length=calibration.length,
        seed=settings.calibration.seed,
        overlap_forced=bool(overlaps),
        text_sha256=text.sha256,
    )


def _overlaps(texts: Texts, calibration: Windows, evaluation: Windows | None) -> str:
    """What of the calibration text stands in the evaluation text; empty: nothing."""
    if texts.calibration is None or texts.evaluation is None or evaluation is None:
        return ""
    where = f"stand in the evaluation text ({texts.evaluation.name})"
    if shared := overlap(calibration, evaluation):
        return f"{shared} of {calibration.count} calibration windows {where}"
    return f"The same dataset and split {where}" if texts.calibration.name == texts.evaluation.name else ""


def evaluation_record(text: Text, evaluation: Windows, settings: Settings) -> TextRecord:
    return TextRecord(
        dataset=text.name,
        revision=text.revision,
        sha256=evaluation.sha256,
        windows=evaluation.count,
        length=evaluation.length,
        stride=settings.evaluation.stride or evaluation.length,
        text_sha256=text.sha256,
    )
