"""Verdicts and the state of the bot as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.markup import escape
from rich.table import Table

from hubbot.bot.verdicts import Action, Verdict
from hubbot.settings.sections import format_size

_LOOKS = {Action.RUN: "green", Action.WAIT: "yellow", Action.SKIP: "dim", Action.LOOK: "yellow"}


def verdict_table(verdicts: Iterable[Verdict], *, everything: bool) -> tuple[Table, Counter[str]]:
    """The table, without what is left alone unless `everything` is wanted; and how often each rule spoke."""
    table = Table(box=None, pad_edge=False)
    for name in ("model", "revision", "verdict", "rule", "reason"):
        table.add_column(name, overflow="fold")
    table.add_column("cost", justify="right")
    rules: Counter[str] = Counter()
    for verdict in verdicts:
        rules[verdict.rule] += 1
        if everything or verdict.action is not Action.SKIP:
            cells = (
                verdict.model,
                verdict.revision[:8],
                verdict.action,
                verdict.rule,
                verdict.reason,
                size(verdict.cost),
            )
            table.add_row(*(escape(str(cell)) for cell in cells), style=_LOOKS[verdict.action])
    return table, rules


def status_tables(status: Mapping[str, Any]) -> list[Table]:
    """`ledger.report.status` for people: counts, then what runs, waits and is parked, then the history."""
    tables = [_pairs("jobs", status["jobs"]), _pairs("events", status["events"])]
    columns = "model revision cause failures due worker error".split()
    tables += [_rows(name, columns, status[name]) for name in ("running", "queued", "parked") if status[name]]
    broken = [source for source in status["sources"] if source["error"]]
    if broken:
        tables.append(_rows("sources that could not be read", ("name", "polled", "error"), broken))
    if status["history"]:
        tables.append(_rows("history", "model revision started seconds outcome error".split(), status["history"]))
    return tables


def size(count: int | None) -> str:
    return "" if count is None else format_size(count)


def _pairs(title: str, values: Mapping[str, int]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False, min_width=40)
    table.add_row(", ".join(f"{count} {name}" for name, count in values.items() if count) or "none")
    return table


def _rows(title: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, min_width=40)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(column, row.get(column))) for column in columns))
    return table


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):  # a damaged row
        return f"{seconds:g}"


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column in ("due", "started", "polled"):
        return _moment(value)
    if column == "revision":
        return str(value)[:8]
    return f"{value:.0f}" if column == "seconds" else str(value)
