"""Which texts a job needs, fetched before the sweep by the process that may use the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubbot.domain import Gguf, Gptq
from hubbot.formats.names import parse_variants
from hubbot.hub.read.datasets import TextFile, fetch_text
from hubbot.settings import Settings

__all__ = ["calibrates", "digests", "evaluation_text", "fetch_texts"]

_CHARACTERS_PER_TOKEN = 8  # generous: English has about 4.5, and windows are drawn from more than they fill


def calibrates(settings: Settings) -> bool:
    """Whether any variant wants to know the inputs of the linear layers."""
    return any(
        isinstance(variant, Gptq) or (isinstance(variant, Gguf) and settings.gguf.imatrix)
        for variant in parse_variants(settings.variants)
    )


def fetch_texts(settings: Settings, *, into: Path, token: str | None, endpoint: str | None) -> dict[str, Any]:
    """The fields of `hubbot.child.stages.Texts`; None where a text is not needed."""
    calibration = None
    if calibrates(settings):
        wanted = settings.calibration.samples * settings.calibration.length * _CHARACTERS_PER_TOKEN
        calibration = fetch_text(
            settings.calibration, into=into / "calibration", characters=wanted, token=token, endpoint=endpoint
        )
    return evaluation_text(settings, into=into, token=token, endpoint=endpoint) | _named("calibration", calibration)


def evaluation_text(settings: Settings, *, into: Path, token: str | None, endpoint: str | None) -> dict[str, Any]:
    """The same, of the evaluation text alone."""
    evaluation = None
    if settings.evaluation.wanted:
        evaluation = fetch_text(
            settings.evaluation, into=into / "evaluation", characters=None, token=token, endpoint=endpoint
        )
    return _named("calibration", None) | _named("evaluation", evaluation)


def digests(texts: Mapping[str, Any]) -> dict[str, str]:
    """Purpose -> sha256 of each text that is there, of what fetch_texts gives."""
    found = {purpose: texts[f"{purpose}_sha256"] for purpose in ("calibration", "evaluation")}
    return {purpose: digest for purpose, digest in found.items() if digest}


def _named(purpose: str, text: TextFile | None) -> dict[str, str | None]:
    return {
        purpose: str(text.path) if text else None,
        f"{purpose}_name": text.name if text else "",
        f"{purpose}_revision": text.revision if text else None,
        f"{purpose}_sha256": text.sha256 if text else None,
    }
