"""A run in short: the table on the terminal, GitHub's step summary, the text of a pull request, a review.

All of them are pure functions of records.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.table import Table
from rich.text import Text

from hubbot.cards import figures
from hubbot.cards.card import files_table, quality_points
from hubbot.cards.changes import Kind, changes, changes_table, conditions, verdicts
from hubbot.cards.escape import clean, code, inline, line, url
from hubbot.cards.picture import Point
from hubbot.domain import Record, Status, VariantRecord
from hubbot.release.gate import recommend
from hubbot.release.repos import Repo, kind_of

__all__ = ["SUMMARY_LIMIT", "mermaid", "pull_request", "reasons", "results_table", "review", "step_summary"]

SUMMARY_LIMIT = 1_000_000  # bytes; GitHub drops a step summary above 1 MiB
_MARKS = {
    Status.PASSED: "✓ passed",
    Status.PUBLISHED: "✓ published",
    Status.REFUSED: "✗ refused",
    Status.FAILED: "✗ failed",
}
_COLOURS = {Status.PASSED: "green", Status.PUBLISHED: "green", Status.REFUSED: "red", Status.FAILED: "red"}
CHECKLIST = (
    "The source and its licence allow this release",
    "The numbers are what this size should give; no variant is worse than before without a reason",
    "The samples read as the original's do",
    "Name, tags and text of the card are right",
)


def results_table(record: Record, *, width: int = 130) -> Table:
    """The table at the end of a run, for a terminal of `width` columns; a narrow one gets fewer columns."""
    wide = width >= 128
    table = Table(title=Text(line(record.source.name)), title_justify="left", header_style="bold", box=None)
    for heading in ("variant", "verdict"):
        table.add_column(heading, no_wrap=True)
    headings = ("size", "bits", "perplexity", "change", "KL mean", "KL 99 %", "same top", "time")
    chosen = range(8) if wide else (0, 2, 4, 6)
    for index in chosen:
        table.add_column(headings[index], justify="right", no_wrap=True)
    if record.base:
        base = figures.perplexity(record.base.perplexity, record.base.stderr if wide else None)
        table.add_row("original", "", *(base if index == 2 else "" for index in chosen), style="dim")
    for variant in record.variants:
        verdict = Text(_MARKS[variant.status], style=_COLOURS[variant.status])
        cells = _cells(variant, stderr=wide)
        table.add_row(Text(line(variant.name, limit=30)), verdict, *(cells[index] or "" for index in chosen))
    return table


def reasons(record: Record) -> list[str]:
    """A line for every variant that did not pass, to stand below the table."""
    return [
        f"{line(name, limit=48)} {status}: {reason}" for name, status, reason in verdicts(record) if not status.passed
    ]


def _cells(variant: VariantRecord, *, stderr: bool = True) -> list[str | None]:
    score = variant.score
    return [
        figures.size(sum(file.size for file in variant.files) or None),
        figures.bits(variant.bits_per_weight),
        figures.perplexity(score.perplexity, score.stderr if stderr else None) if score else None,
        figures.ratio(score.ratio) if score else None,
        figures.nats(score.kld.mean) if score else None,
        figures.nats(score.kld.p99) if score else None,
        figures.percent(score.top1) if score else None,
        figures.duration(variant.seconds),
    ]


# --- GitHub -----------------------------------------------------------------------------------------


def step_summary(record: Record, *, pull_requests: Mapping[str, str] | None = None, limit: int = SUMMARY_LIMIT) -> str:
    """Markdown for $GITHUB_STEP_SUMMARY: verdicts, table, picture, links, checklist; never above `limit` bytes.

    pull_requests: repo id -> address. What does not fit is left out from the end, and said.
    """
    good = [v for v in record.variants if v.passed]
    best = recommend(record.variants)
    parts = [
        f"## {inline(record.source.name)}: {len(good)} of {len(record.variants)} variants passed",
        _links(pull_requests or {}),
        _verdict_list(record),
        _summary_table(record),
        mermaid(quality_points(record, best)),
        _checklist() if pull_requests else "",
        _timings(record),
    ]
    return _fit([part for part in parts if part], limit)


def _fit(parts: Sequence[str], limit: int) -> str:
    left_out = "\n*The rest did not fit; hubbot.json has it all.*\n"
    kept: list[str] = []
    used = len(left_out.encode())
    for part in parts:
        used += len(part.encode()) + 2
        if used > limit:
            return "\n\n".join(kept) + left_out
        kept.append(part)
    return "\n\n".join(kept) + "\n"


def _links(pull_requests: Mapping[str, str]) -> str:
    lines = [
        f"- [{inline(repo)}]({target})"
        for repo, address in list(pull_requests.items())[:100]
        if (target := url(address))
    ]
    return "\n".join(["Waiting for review:", "", *lines]) if lines else ""


def _verdict_list(record: Record) -> str:
    bad = [(name, status, reason) for name, status, reason in verdicts(record) if not status.passed]
    return "\n".join(f"- {code(name)} **{status}**: {inline(reason)}" for name, status, reason in bad[:200])


def _summary_table(record: Record) -> str:
    head = [("Variant", ":--"), ("Verdict", ":--"), ("Size", "--:"), ("Bits/weight", "--:"), ("Perplexity", "--:")]
    head += [("Change", "--:"), ("KL mean", "--:"), ("KL 99 %", "--:"), ("Same top token", "--:"), ("Time", "--:")]
    rows = [[code(v.name, cell=True), _MARKS[v.status], *_cells(v)] for v in record.variants[:500]]
    if record.base and any(v.score for v in record.variants):
        shown = figures.perplexity(record.base.perplexity, record.base.stderr)
        rows.append(["*original*", None, None, None, shown, None, None, None, None, None])
    return figures.table(head, rows) if rows else ""


def _timings(record: Record) -> str:
    shown = [
        f"{inline(stage, limit=60)} {figures.duration(seconds)}" for stage, seconds in list(record.timings.items())[:30]
    ]
    return f"Time: {', '.join(shown)}." if shown else ""


def _checklist() -> str:
    return "\n".join(["Before merging:", "", *(f"- [ ] {item}" for item in CHECKLIST)])


_CHART = (860, 520)  # pixels


def mermaid(points: Sequence[Point]) -> str:
    """Size against closeness as a Mermaid quadrant chart, which GitHub draws in summaries (it strips SVG).

    Both axes are logarithmic, scaled to 0..1. Of the variants that passed, those whose labels would lie on
    another's are left out, the recommended one never; the table has them all. Empty for fewer than two.
    """
    shown = [p for p in points if math.isfinite(p.value) and p.value > 0 and p.size > 0 and not p.refused][:100]
    if len(shown) < 2:
        return ""
    across = _scaled([math.log(point.size) for point in shown])
    up = _scaled([-math.log(point.value) for point in shown])
    spots = {_plain(point.label): spot for point, spot in zip(shown, zip(across, up, strict=True), strict=True)}
    first = [_plain(point.label) for point in shown if point.recommended]
    drawn = _clear_of_each_other({name: spots[name] for name in [*first, *spots]})
    head = f"%%{{init: {{'quadrantChart': {{'chartWidth': {_CHART[0]}, 'chartHeight': {_CHART[1]}}}}}}}%%"
    return "\n".join(
        [
            "```mermaid",
            head,
            "quadrantChart",
            "    title Size against closeness to the original",
            "    x-axis Small --> Large",
            "    y-axis Far --> Close",
            *(f'    "{name}": [{x:.3f}, {y:.3f}]' for name, (x, y) in drawn.items()),
            "```",
        ]
    )


def _clear_of_each_other(spots: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The marks in order, without those that would lie on one before; Mermaid centres a label below its mark."""
    kept: dict[str, tuple[float, float]] = {}
    for name, (x, y) in spots.items():
        if all(
            abs(x - x2) * _CHART[0] > 3.6 * (len(name) + len(other)) or abs(y - y2) * _CHART[1] > 22
            for other, (x2, y2) in kept.items()
        ):
            kept[name] = (x, y)
    return kept


def _plain(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "", label)[:40] or "variant"


def _scaled(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [0.08 + 0.84 * ((value - low) / (high - low) if high > low else 0.5) for value in values]


# --- review -----------------------------------------------------------------------------------------


def pull_request(record: Record, repo: Repo, previous: Record | None = None) -> tuple[str, str]:
    """Title and description of the pull request that brings a release to `repo`.

    previous: the record that is on main, if the repo has one.
    """
    at = f" at {line(record.source.revision)[:12]}" if record.source.revision else ""
    count = len(repo.variants)
    title = f"{line(record.source.name, limit=80)}{at}: {count} variant{'s' if count != 1 else ''}"
    parts = [
        f"Made from {inline(record.source.repo or record.source.name)}{inline(at) and f' {inline(at)}'} by hubbot "
        f"{inline(record.hubbot.get('version') or '')}. Every number was measured in this run; `hubbot.json` holds them all.",
        files_table(record, repo, links=False),
        _since(previous, record, {variant.name for variant in repo.variants}) if previous else "",
        _verdict_list(replace(record, variants=tuple(v for v in record.variants if kind_of(v) is repo.kind))),
        _checklist(),
    ]
    return title, _fit([part for part in parts if part], 60_000)


def _since(previous: Record, record: Record, names: set[str]) -> str:
    mine = {variant.family for variant in record.variants if variant.name in names}
    found = tuple(
        change
        for change in changes(previous, record)
        if change.name in names or (change.old is not None and change.new is None and change.old.family in mine)
    )
    lines = ["### Since the last release", "", changes_table(found) or "Nothing."]
    other = conditions(previous, record)
    return "\n".join([*lines, *(["", *(f"- {entry}" for entry in other)] if other else [])])


def review(new: Record, old: Record | None) -> str:
    """What `hubbot review` prints below the card, as Markdown: verdicts, numbers against main, what else differs."""
    told = "\n".join(
        f"- {code(name)} {_MARKS[status]}{f': {inline(reason)}' if reason else ''}"
        for name, status, reason in verdicts(new)
    )
    parts = [f"## {inline(new.source.name)}: verdicts", told]
    if old is None:
        return "\n\n".join([*parts, "There is no earlier release to compare with."]) + "\n"
    found = changes(old, new)
    worse = [code(change.name) for change in found if change.kind is Kind.WORSE]
    parts += ["## Numbers against main", changes_table(found)]
    parts += [f"**Worse than before: {', '.join(worse)}.**"] if worse else []
    other = conditions(old, new)
    parts += ["## What else differs", "\n".join(f"- {entry}" for entry in other)] if other else []
    return clean("\n\n".join(part for part in parts if part), limit=400_000) + "\n"
