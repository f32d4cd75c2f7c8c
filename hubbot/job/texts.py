"""Which texts a job needs, fetched before the sweep by the process that may use the network."""

from __future__ import annotations

from pathlib import Path

from hubbot.domain import Text, Texts
from hubbot.formats import calibration_needs
from hubbot.formats.names import parse_variants
from hubbot.formats.protocol import Needs
from hubbot.hub.client import Hub
from hubbot.hub.read.datasets import fetch_text
from hubbot.record.fingerprint import shaping
from hubbot.settings import Settings

__all__ = ["calibrates", "evaluation_text", "fetch_texts"]

_CHARACTERS_PER_TOKEN = 8  # generous: English has about 4.5, and windows are drawn from more than they fill


def calibrates(settings: Settings) -> bool:
    """Whether any variant wants to know the inputs of the linear layers."""
    return calibration_needs(parse_variants(settings.variants), shaping(settings)) is not Needs.NOTHING


def fetch_texts(settings: Settings, hub: Hub, *, into: Path) -> Texts:
    """Calibration and evaluation text; None where one is not needed."""
    calibration = None
    if calibrates(settings):
        wanted = settings.calibration.samples * settings.calibration.length * _CHARACTERS_PER_TOKEN
        calibration = fetch_text(settings.calibration, hub, into=into / "calibration", characters=wanted)
    evaluation = evaluation_text(settings, hub, into=into)
    return Texts(calibration=calibration, evaluation=evaluation)


def evaluation_text(settings: Settings, hub: Hub, *, into: Path) -> Text | None:
    """The evaluation text alone; None where nothing is evaluated."""
    if not settings.evaluation.wanted:
        return None
    return fetch_text(settings.evaluation, hub, into=into / "evaluation", characters=None)
