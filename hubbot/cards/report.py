"""OUT/report.html: one file that shows a run, without a request to anywhere.

A table to sort, size against divergence and perplexity, the error of every layer, samples side by side
and timings. The content policy lets in this style and this script by their hashes and nothing else, so
text from outside could not act even if it were not escaped. Without a script everything is still there.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hubbot.cards import figures
from hubbot.cards.card import quality_points
from hubbot.cards.escape import clean, line, repo_id
from hubbot.cards.heat import LEVELS, heat_map, heat_style
from hubbot.cards.labels import NARROW, WIDE
from hubbot.cards.layout import html_environment
from hubbot.cards.memory import memory_needed
from hubbot.cards.picture import CHANGE, DIVERGENCE, Measure, Point, css, draw, known
from hubbot.cards.sides import sides
from hubbot.domain import Record, Sample, VariantRecord
from hubbot.formats import FAMILIES
from hubbot.release.gate import recommend
from hubbot.release.paired import change_of

__all__ = ["FILE_NAME", "render_report", "write_report"]

FILE_NAME = "report.html"
_SAMPLE = 1_500  # characters


@dataclass(frozen=True, slots=True)
class Cell:
    """A number as it is shown and as it is sorted; None where it was not measured."""

    shown: str | None
    value: float | None


def write_report(record: Record, out: Path) -> Path:
    """Write OUT/report.html by atomic rename."""
    target = out / FILE_NAME
    unfinished = out / f".{FILE_NAME}.part"
    out.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(render_report(record), encoding="utf-8")
    os.replace(unfinished, target)  # noqa: PTH105 - the rename that is atomic
    return target


def render_report(record: Record) -> str:
    """The whole page."""
    environment = html_environment()
    view = _view(record)
    style = _source(environment, "report.css") + css() + heat_style(view["heat"])
    script = _source(environment, "report.js")
    return environment.get_template("report.html.j2").render(
        style=Markup(style),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        **view,
    )


def _source(environment: Any, name: str) -> str:
    text: str = environment.loader.get_source(environment, name)[0]
    return text.replace("\r\n", "\n")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _view(record: Record) -> dict[str, Any]:
    best = recommend(record.variants)
    good = [v for v in record.variants if v.passed]
    source = record.source
    return {
        "name": line(source.name),
        "link": f"https://huggingface.co/{repo_id(source.repo)}" if repo_id(source.repo) else None,
        "repo": line(source.repo or source.name),
        "revision": line(source.revision, limit=40) if source.revision else None,
        "passed": len(good),
        "total": len(record.variants),
        "best": best,
        "best_facts": _best_facts(best),
        "base": figures.perplexity(record.base.perplexity, record.base.stderr) if record.base else None,
        "tokens": f"{record.base.tokens:,}" if record.base else None,
        "overlap": bool(record.calibration and record.calibration.overlap_forced),
        "columns": _columns(record),
        "rows": [_row(record, variant, best) for variant in record.variants],
        "plots": _plots(record, best),
        "heat": [found for variant in record.variants if (found := heat_map(variant))],
        "levels": LEVELS,
        "nats": figures.nats,
        "compared": [(v.name, _compared(v.samples)) for v in record.variants if v.samples],
        "timings": _timings(record),
        "facts": _facts(record),
        "notes": [(v.name, clean(note, limit=400)) for v in record.variants for note in v.notes][:60],
    }


def _best_facts(best: VariantRecord | None) -> str:
    if best is None:
        return ""
    told = [figures.size(sum(file.size for file in best.files) or None)]
    told += [f"{figures.nats(best.score.kld.mean)} nats"] if best.score and figures.nats(best.score.kld.mean) else []
    return ", ".join(fact for fact in told if fact)


# --- the table --------------------------------------------------------------------------------------

_HEADINGS = (
    ("size", "Size"),
    ("kld", "KL mean"),
    ("heard", "KL in chat"),
    ("ratio", "Change"),
    ("perplexity", "Perplexity"),
    ("top1", "Same top token"),
    ("p99", "KL 99 %"),
    ("worst", "KL max"),
    ("rms", "RMS Δp"),
    ("bits", "Bits per weight"),
    ("memory", "Memory needed"),
    ("prompt", "Prompt tok/s"),
    ("speed", "Generation tok/s"),
    ("seconds", "Time"),
)


def _cells(record: Record, variant: VariantRecord) -> dict[str, Cell]:
    score, speed = variant.score, variant.speed
    size = sum(file.size for file in variant.files) or None
    memory = memory_needed(variant, record.source)
    measured: dict[str, tuple[str | None, float | None]] = {
        "size": (figures.size(size), size),
        "bits": (figures.bits(variant.bits_per_weight), variant.bits_per_weight),
        "memory": (figures.size(memory), memory),
        "seconds": (figures.duration(variant.seconds), variant.seconds),
    }
    if score:
        measured |= {
            "perplexity": (figures.perplexity(score.perplexity, score.stderr), score.perplexity),
            "ratio": (figures.ratio(score.ratio), score.ratio),
            "kld": (figures.nats(score.kld.mean), score.kld.mean),
            "p99": (figures.nats(score.kld.p99), score.kld.p99),
            "worst": (figures.nats(score.kld.max), score.kld.max),
            "top1": (figures.percent(score.top1), score.top1),
            "rms": (figures.percent(score.rms_dp), score.rms_dp),
        }
    if heard := record.conversations and record.conversations.scores.get(variant.name):
        measured["heard"] = (figures.nats(heard.kld.mean), heard.kld.mean)
    if speed:
        measured |= {
            "prompt": (figures.per_second(speed.prompt_tokens_per_second), speed.prompt_tokens_per_second),
            "speed": (figures.per_second(speed.generation_tokens_per_second), speed.generation_tokens_per_second),
        }
    return {key: Cell(_whole(shown), value if shown else None) for key, (shown, value) in measured.items()}


def _whole(shown: str | None) -> str | None:
    """A number stays with its unit; before its error the line may break."""
    return shown and shown.replace(" ", "\u00a0").replace("\u00a0±", " ±")


def _columns(record: Record) -> list[tuple[str, str]]:
    """The headings of the columns in which any variant has a number."""
    present = {key for v in record.variants for key, cell in _cells(record, v).items() if cell.shown}
    return [(key, heading) for key, heading in _HEADINGS if key in present]


def _row(record: Record, variant: VariantRecord, best: VariantRecord | None) -> dict[str, Any]:
    return {
        "name": line(variant.name, limit=64),
        "family": FAMILIES[variant.family].ABOUT.title,
        "kind": str(variant.family),
        "status": str(variant.status),
        "good": variant.passed,
        "reason": line(variant.reason or "", limit=400),
        "best": variant is best,
        "cells": _cells(record, variant),
    }


# --- pictures ---------------------------------------------------------------------------------------


def _plots(record: Record, best: VariantRecord | None) -> list[dict[str, Any]]:
    divergence = quality_points(record, best)
    scores = {variant.name: variant.score for variant in record.variants}
    moved = [
        replace(point, value=score.ratio - 1, error=known(score.ratio_stderr), means=change_of(score.windows))
        for point in divergence
        if (score := scores[point.label]) is not None
    ]
    drawn = [
        _both(divergence, title="Size against divergence", measure=DIVERGENCE),
        _both(moved, title="Size against perplexity", measure=CHANGE),
    ]
    return [plot for plot in drawn if plot["wide"]]


def _both(points: Sequence[Point], *, title: str, measure: Measure) -> dict[str, Any]:
    frames = {"wide": WIDE, "narrow": NARROW}
    return {
        size: Markup(draw(points, title=title, measure=measure, frame=frame, standalone=False))  # noqa: S704 - escaped there
        for size, frame in frames.items()
    }


# --- samples ----------------------------------------------------------------------------------------


def _compared(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    compared = []
    for sample in samples[:24]:
        found = sides(sample, limit=_SAMPLE)
        alike = [(clean(sample.base, limit=_SAMPLE).strip(), False)]
        base, other = found or (alike, alike)
        compared.append(
            {
                "prompt": clean(sample.prompt, limit=_SAMPLE),
                "base": base,
                "variant": other,
                "same": sample.base == sample.variant,
                "beyond": found is None,
                "at": sample.differs_at,
            }
        )
    return compared


# --- how it was made --------------------------------------------------------------------------------


def _timings(record: Record) -> list[dict[str, Any]]:
    spent = [(line(stage, limit=60), seconds) for stage, seconds in record.timings.items() if math.isfinite(seconds)]
    longest = max((seconds for _, seconds in spent), default=0.0)
    return [
        {
            "stage": stage,
            "shown": figures.duration(seconds),
            "share": round(100 * seconds / longest, 1) if longest else 0,
        }
        for stage, seconds in spent
    ]


def _facts(record: Record) -> list[tuple[str, str]]:
    source, peak = record.source, record.peak
    texts = {
        "Calibration": record.calibration,
        "Evaluation": record.evaluation,
        "Conversations": record.conversations and record.conversations.text,
    }
    told: list[tuple[str, str | None]] = [
        ("Command", record.command),
        ("hubbot", " ".join(value for value in (record.hubbot.get("version"), record.hubbot.get("commit")) if value)),
        ("Source", f"{source.repo or source.name} {source.revision or ''}"),
        ("Licence", source.license_name or source.license),
        ("Architecture", source.architecture),
        ("Weights", f"{source.parameters:,}" if source.parameters else None),
        *(
            (name, f"{text.dataset} {(text.revision or '')[:12]}, {text.windows:,} windows of {text.length:,} tokens")
            for name, text in texts.items()
            if text
        ),
        ("Tools", ", ".join(f"{name} {version}" for name, version in sorted(record.tools.items()))),
        ("Machine", ", ".join(_hardware(name, value) for name, value in record.hardware.items() if value is not None)),
        ("Peak RAM", figures.size(peak.rss)),
        ("Peak VRAM", figures.size(peak.vram)),
        ("Peak disk", figures.size(peak.disk)),
        ("Made", record.created),
    ]
    return [(name, clean(value, limit=800)) for name, value in told if value and value.strip()]


def _hardware(name: str, value: str | int) -> str:
    return f"{name} {figures.size(value) if isinstance(value, int) and value > 10**6 else value}"
