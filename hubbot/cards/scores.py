"""Scores of artefacts as a table for people."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from hubbot.cards import figures
from hubbot.domain import Perplexity, Score, TextRecord

__all__ = ["scores_table"]


def scores_table(text: TextRecord, base: Perplexity, scores: Mapping[str, Score]) -> Table:
    """text and base: what the scores were measured on; scores: by the artefact's name."""
    perplexity = figures.perplexity(base.perplexity, base.stderr)
    title = f"{text.dataset}: {text.windows} windows of {text.length} tokens, base perplexity {perplexity}"
    table = Table(title=Text(title))
    table.add_column("artefact")
    for heading in ("perplexity", "change", "KL mean", "KL 99 %", "same top", "RMS Δp"):
        table.add_column(heading, justify="right")
    for name, score in scores.items():
        table.add_row(
            Text(name),
            figures.perplexity(score.perplexity, score.stderr),
            figures.ratio(score.ratio),
            figures.nats(score.kld.mean),
            figures.nats(score.kld.p99),
            figures.percent(score.top1),
            figures.percent(score.rms_dp),
        )
    return table
