"""Which texts a job needs, fetched before the sweep by the process that may use the network."""

from __future__ import annotations

from pathlib import Path

from hubbot.domain import Text, Texts
from hubbot.formats import calibration_needs
from hubbot.formats.names import parse_variants
from hubbot.formats.protocol import Needs
from hubbot.hub.read.datasets import fetch_text
from hubbot.record.fingerprint import shaping
from hubbot.settings import Settings

__all__ = ["calibrates", "evaluation_text", "fetch_texts"]

_CHARACTERS_PER_TOKEN = 8  # generous: English has about 4.5, and windows are drawn from more than they fill


def calibrates(settings: Settings) -> bool:
    """Whether any variant wants to know the inputs of the linear layers."""
    families = {variant.family for variant in parse_variants(settings.variants)}
    return calibration_needs(families, shaping(settings)) is not Needs.NOTHING


def fetch_texts(settings: Settings, *, into: Path, token: str | None, endpoint: str | None) -> Texts:
    """Calibration and evaluation text; None where one is not needed."""
    calibration = None
    if calibrates(settings):
        wanted = settings.calibration.samples * settings.calibration.length * _CHARACTERS_PER_TOKEN
        calibration = fetch_text(
            settings.calibration, into=into / "calibration", characters=wanted, token=token, endpoint=endpoint
        )
    evaluation = evaluation_text(settings, into=into, token=token, endpoint=endpoint)
    return Texts(calibration=calibration, evaluation=evaluation)


def evaluation_text(settings: Settings, *, into: Path, token: str | None, endpoint: str | None) -> Text | None:
    """The evaluation text alone; None where nothing is evaluated."""
    if not settings.evaluation.wanted:
        return None
    return fetch_text(settings.evaluation, into=into / "evaluation", characters=None, token=token, endpoint=endpoint)
