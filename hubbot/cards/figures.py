"""Numbers as people read them, the same in cards, reports, summaries and pull requests."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hubbot.settings.sections import format_size

__all__ = ["bits", "change", "duration", "nats", "per_second", "percent", "perplexity", "ratio", "size", "table"]


def size(count: float | None) -> str | None:
    """Bytes in decimal units, as the Hub counts: 807.7 MB, 4.92 GB."""
    return None if count is None or not math.isfinite(count) else format_size(count)


def bits(value: float | None) -> str | None:
    return f"{value:.2f}" if value is not None and math.isfinite(value) else None


def perplexity(value: float | None, stderr: float | None = None) -> str | None:
    if value is None or not math.isfinite(value):
        return None
    shown = f"{value:.4f}" if value < 1_000 else f"{value:,.0f}"
    if stderr is None or not math.isfinite(stderr):
        return shown
    return f"{shown} ± {stderr:.4f}" if value < 1_000 else f"{shown} ± {stderr:,.0f}"


def ratio(value: float | None, interval: tuple[float, float] | None = None) -> str | None:
    """Perplexity over the base's, as the change in per cent, and its interval: +2.33 % (2.10 to 2.56)."""
    if value is None or not math.isfinite(value):
        return None
    if value >= 10:
        return f"× {value:,.0f}"
    moved = f"{(value - 1) * 100:+.2f} %"
    shown = "±0.00 %" if moved[1:] == "0.00 %" else moved
    if interval is None:
        return shown
    low, high = (round((end - 1) * 100, 2) + 0.0 for end in interval)  # + 0.0: no -0.00
    return f"{shown} ({low:.2f} to {high:.2f})"


def nats(value: float | None, interval: tuple[float, float] | None = None) -> str | None:
    """Three significant digits without an exponent, and the interval with as many places: 0.0388 (0.0371 to 0.0405)."""
    if value is None or not math.isfinite(value):
        return None
    digits = min(max(0, 2 - math.floor(math.log10(abs(value)))), 9) if value else 0
    shown = f"{value:.{digits}f}"
    return shown if interval is None else f"{shown} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def percent(share: float | None) -> str | None:
    return f"{share * 100:.2f} %" if share is not None and math.isfinite(share) else None


def per_second(value: float | None) -> str | None:
    return f"{value:,.1f}" if value is not None and math.isfinite(value) else None


def duration(seconds: float | None) -> str | None:
    if seconds is None or not math.isfinite(seconds):
        return None
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def change(old: float | None, new: float | None) -> str | None:
    """The change from old to new in per cent of the old; None where either was not measured or nothing moved."""
    if old is None or new is None or not math.isfinite(old) or not math.isfinite(new) or old == 0:
        return None
    moved = f"{(new / old - 1) * 100:+.2f} %"
    return None if moved[1:] == "0.00 %" else moved


def table(head: Sequence[tuple[str, str]], rows: Sequence[Sequence[str | None]]) -> str:
    """A Markdown table.

    head: (title, ":--", "--:" or ":-:") for each column; rows: cells that are Markdown already. A column
    that has no cell at all is left out, and without rows the table is empty.
    """
    kept = [index for index in range(len(head)) if any(row[index] is not None for row in rows)]
    if not kept:
        return ""
    lines = [[head[index][0] for index in kept], [head[index][1] for index in kept]]
    lines += [[row[index] or "–" for index in kept] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
