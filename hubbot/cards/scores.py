"""Scores of artefacts as a table for people."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from hubbot.domain import Perplexity, Score, TextRecord

__all__ = ["scores_table"]


def scores_table(text: TextRecord, base: Perplexity, scores: Mapping[str, Score]) -> Table:
    """text and base: what the scores were measured on; scores: by the artefact's name."""
    title = f"{text.dataset}: {text.windows} windows of {text.length} tokens, base perplexity {base.perplexity:.4f} ± {base.stderr:.4f}"
    table = Table(title=Text(title))
    table.add_column("artefact")
    for heading in ("perplexity", "ratio", "KL mean", "KL 99 %", "top-1", "RMS Δp"):
        table.add_column(heading, justify="right")
    for name, score in scores.items():
        table.add_row(
            Text(name),
            f"{score.perplexity:.4f} ± {score.stderr:.4f}",
            f"{score.ratio:.4f}",
            f"{score.kld.mean:.3e}",
            f"{score.kld.p99:.3e}",
            f"{score.top1:.2%}",
            f"{score.rms_dp:.2%}",
        )
    return table
