"""What makes two releases the same: weights, tokenizer, settings, hubbot's version.

A published repo holds its hubbot.json; when the fingerprint of a job to come equals the fingerprint of
that record, there is nothing to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from hubbot.domain import Family, Record, Source
from hubbot.formats import FAMILIES
from hubbot.model.companions import is_carried, is_licence
from hubbot.settings import Settings

__all__ = ["fingerprint", "fingerprint_of", "matters", "shaping", "texts_of"]

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth")


def fingerprint(
    *,
    source: Source,
    config: Mapping[str, Any],
    variants: Iterable[str],
    version: str,
    texts: Mapping[str, str] | None = None,
) -> str:
    """sha256 in hex of what determines a release.

    config: `shaping(settings)`; variants: the names asked for, in any order; version: hubbot's; texts: purpose
    (calibration, evaluation, conversations) -> sha256 of the text, for the settings tell a text's name alone.
    The place of the source, its revision and its README are left out: a commit that touches none of
    the files above gives the same fingerprint.
    """
    determined = {
        "files": {path: digest for path, digest in sorted(source.files.items()) if matters(path)},
        "config": config,
        "variants": sorted(set(variants)),
        "hubbot": version,
        "texts": dict(texts or {}),
    }
    text = json.dumps(determined, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_of(record: Record, family: Family | None = None) -> str:
    """The fingerprint of a finished run, or of one family's part of it. Refused variants count: they were asked for."""
    return fingerprint(
        source=record.source,
        config=record.config,
        variants=(v.name for v in record.variants if family is None or v.family is family),
        version=record.hubbot.get("version") or "",
        texts=texts_of(record),
    )


def texts_of(record: Record) -> dict[str, str]:
    """Purpose -> sha256 of the text that a run used, where it used one."""
    used = {
        "calibration": record.calibration,
        "evaluation": record.evaluation,
        "conversations": record.conversations and record.conversations.text,
    }
    return {purpose: text.text_sha256 for purpose, text in used.items() if text and text.text_sha256}


def shaping(settings: Settings) -> dict[str, Any]:
    """The settings that shape bytes, numbers or verdicts, as JSON: what `Record.config` holds.

    Where things lie, what they may cost and how they travel (out, device, budgets, publishing, the bot)
    is left out; `quantized_by` stays, because it is written into the files.
    """
    sections = {section for family in FAMILIES.values() if (section := family.ABOUT.section)}
    everything = settings.model_dump(
        mode="json", include={"calibration", "evaluation", "conversations", "gate", *sections}
    )
    check = {"card": settings.check.card, "vllm": settings.check.vllm is not None}  # where it lies is nobody's business
    return {
        **everything,
        "quantized_by": settings.publish.quantized_by,
        "benchmark": settings.benchmark,
        "check": check,
    }


def matters(path: str) -> bool:
    """Whether a file of the source reaches a variant's bytes or behaviour.

    Everything else (README, licence, pictures, results of somebody's evaluation) may change without making a new model.
    """
    return path == "config.json" or path.lower().endswith(_WEIGHTS) or (is_carried(path) and not is_licence(path))
