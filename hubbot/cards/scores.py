"""Artefacts of anybody's, measured against their base: as a table for people, and as points of a picture. Pure."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from hubbot.cards import figures
from hubbot.cards.picture import Point, closer_and_no_larger, known
from hubbot.domain import Measured
from hubbot.release.paired import divergence_of

__all__ = ["measured_points", "scores_table"]


def scores_table(found: Measured) -> Table:
    """The largest first; the last column names one that is no larger and surely closer."""
    text = found.evaluation
    perplexity = figures.perplexity(found.base.perplexity, found.base.stderr)
    title = f"{text.dataset}: {text.windows} windows of {text.length} tokens, base perplexity {perplexity}"
    table = Table(title=Text(title))
    table.add_column("artefact", no_wrap=True)  # a name is read whole; numbers break instead
    for heading in ("size", "perplexity", "change", "KL mean", "KL 99 %", "same top", "RMS Δp"):
        table.add_column(heading, justify="right")
    table.add_column("rather")
    points = {point.label: point for point in measured_points(found)}
    for name, score in sorted(found.scores.items(), key=lambda item: -found.sizes[item[0]]):
        better = closer_and_no_larger(points[name], points.values()) if name in points else []
        table.add_row(
            Text(name),
            figures.size(found.sizes[name]),
            figures.perplexity(score.perplexity),
            figures.ratio(score.ratio, score.ratio_interval),
            figures.nats(score.kld.mean, score.kld_interval),
            figures.nats(score.kld.p99),
            figures.percent(score.top1),
            figures.percent(score.rms_dp),
            Text(min(better, key=lambda other: other.value).label if better else ""),
        )
    return table


def measured_points(found: Measured) -> list[Point]:
    """Of artefacts of some family; a plain checkpoint is none."""
    return [
        Point(
            label=name,
            family=family,
            size=found.sizes[name],
            value=score.kld.mean,
            error=known(score.kld.stderr),
            means=divergence_of(score.windows),
        )
        for name, score in found.scores.items()
        if (family := found.families[name]) is not None
    ]
