"""Which texts a job needs, fetched before the sweep by the process that may use the network."""

from __future__ import annotations

from pathlib import Path

from hubbot.domain import Source, Text, Texts
from hubbot.formats import calibration_needs
from hubbot.formats.names import parse_variants
from hubbot.formats.protocol import Needs
from hubbot.hub.client import Hub
from hubbot.hub.read.datasets import fetch_text
from hubbot.model.tokenizer import mentions_chat_template
from hubbot.record.fingerprint import shaping
from hubbot.settings import Settings

__all__ = ["calibrates", "conversations_of", "evaluation_text", "fetch_texts"]

_CHARACTERS_PER_TOKEN = 8  # generous: English has about 4.5, and windows are drawn from more than they fill
_LONG_CONVERSATION = 32_768  # characters; what does not fit its window is left out


def calibrates(settings: Settings) -> bool:
    """Whether any variant wants to know the inputs of the linear layers."""
    return calibration_needs(parse_variants(settings.variants), shaping(settings)) is not Needs.NOTHING


def fetch_texts(source: Source, settings: Settings, hub: Hub, *, into: Path) -> Texts:
    """Calibration and evaluation text, and conversations for a chat model; None where one is not needed."""
    calibration = None
    if calibrates(settings):
        wanted = settings.calibration.samples * settings.calibration.length * _CHARACTERS_PER_TOKEN
        calibration = fetch_text(settings.calibration, hub, into=into / "calibration", characters=wanted)
    evaluation = evaluation_text(settings, hub, into=into)
    heard = conversations_of(source, settings, hub, into=into)
    return Texts(calibration=calibration, evaluation=evaluation, conversations=heard)


def conversations_of(source: Source, settings: Settings, hub: Hub, *, into: Path) -> Text | None:
    """Conversations for a source that may have a chat template; None where none are wanted.

    Whether it has one is for the confined child to read; here a glance decides about a download.
    """
    wanted = settings.spoken
    if wanted is None or not mentions_chat_template(Path(source.folder)):
        return None
    window = max(2 * settings.evaluation.context * _CHARACTERS_PER_TOKEN, _LONG_CONVERSATION)
    characters = wanted.windows * window
    return fetch_text(wanted, hub, into=into / "conversations", characters=characters)


def evaluation_text(settings: Settings, hub: Hub, *, into: Path) -> Text | None:
    """The evaluation text alone; None where nothing is evaluated."""
    if not settings.evaluation.wanted:
        return None
    return fetch_text(settings.evaluation, hub, into=into / "evaluation", characters=None)
