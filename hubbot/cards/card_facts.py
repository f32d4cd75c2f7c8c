"""The lists and small tables of a card: how it was made, speed, samples, notes."""

from __future__ import annotations

from collections.abc import Sequence

from hubbot.cards import figures
from hubbot.cards.escape import clean, code, inline, line, repo_id
from hubbot.cards.experts import experts_said
from hubbot.cards.frontmatter import dataset_parts, used, weighed
from hubbot.cards.sides import Pieces, sides
from hubbot.domain import Record, Sample, TextRecord, VariantRecord
from hubbot.formats.protocol import Needs
from hubbot.release.repos import Repo

__all__ = ["facts", "link", "notes", "samples", "speed_table"]

_OPEN = 4  # samples that stand in the open; the others fold away
_SAMPLE = 360  # characters of a continuation


def link(repo: str | None, name: str, *, kind: str = "") -> str:
    """A Markdown link to a repo on the Hub, or the plain name when there is none."""
    target = repo_id(repo)
    return f"[{inline(target)}](https://huggingface.co/{kind}{target})" if target else inline(repo or name)


def facts(record: Record, repo: Repo) -> str:
    """A list of what went in, as Markdown."""
    source = record.source
    lines = {
        "Source": _source(record),
        "Architecture": inline(source.architecture) if source.architecture else None,
        "Weights": f"{source.parameters:,}" if source.parameters else None,
        "Calibration": _text(record.calibration)
        if record.calibration and used(record, repo) is not Needs.NOTHING
        else None,
        "Importance matrix": "from the calibration pass" if weighed(record, repo) else None,
        "Experts": experts_said(record, repo),
        "Evaluation": _text(record.evaluation) if record.evaluation else None,
        "Conversations": _text(record.conversations.text) if record.conversations else None,
        "Tools": _tools(record),
        "Machine": inline(str(record.hardware.get("gpu") or record.hardware.get("cpu") or ""), limit=160) or None,
        "Time": figures.duration(sum(record.timings.values())) if record.timings else None,
        "Made": inline(record.created) if record.created else None,
    }
    return "\n".join(f"- {name}: {value}" for name, value in lines.items() if value)


def _source(record: Record) -> str:
    at = f" at {code(record.source.revision, limit=40)}" if record.source.revision else ""
    return f"{link(record.source.repo, record.source.name)}{at}{_released(record)}"


def _released(record: Record) -> str:
    released = record.source.released_as
    return f", made from {inline(released, limit=40)} weights, decoded to bfloat16" if released else ""


def _text(text: TextRecord) -> str:
    name, config, split = dataset_parts(text.dataset)
    where = link(name, name, kind="datasets/") if repo_id(name) else inline(name)
    parts = ", ".join(inline(part) for part in (config, split) if part)
    at = f" at {code(text.revision, limit=40)}" if text.revision else ""
    seed = f", seed {text.seed}" if text.seed is not None else ""
    stride = f", {text.stride:,} apart" if text.stride and text.stride != text.length else ""
    return (
        f"{where}{f' ({parts})' if parts else ''}{at}, {text.windows:,} windows of {text.length:,} tokens{stride}{seed}"
    )


def _tools(record: Record) -> str:
    own = f"hubbot {record.hubbot.get('version') or ''} {str(record.hubbot.get('commit') or '')[:12]}".split()
    tools = [" ".join(own), *(f"{name} {version}" for name, version in sorted(record.tools.items()))]
    return inline(", ".join(line(tool, limit=80) for tool in tools[:20]), limit=600)


def speed_table(repo: Repo) -> str:
    """Prompt and generation speed and peak memory; empty when nothing was timed."""
    head = [("Variant", ":--"), ("Prompt", "--:"), ("Generation", "--:"), ("Peak memory", "--:")]
    rows = [
        [
            code(variant.name, cell=True),
            figures.per_second(variant.speed.prompt_tokens_per_second),
            figures.per_second(variant.speed.generation_tokens_per_second),
            figures.size(variant.speed.peak_memory),
        ]
        for variant in repo.variants
        if variant.speed
    ]
    return figures.table(head, rows) if rows else ""


def notes(repo: Repo) -> list[tuple[str, str]]:
    """What the run remarked about the repo's variants, at most twenty lines."""
    return [
        (v.name, line(note, limit=300)) for v in repo.variants for note in v.notes if not note.startswith("not gated")
    ][:20]


def samples(variant: VariantRecord) -> tuple[str, str, int]:
    """A table in the open, a table to fold away (either may be empty), and how many rows are folded.

    Samples that differ come first: they are what a reader wants to see.
    """
    ordered = sorted(variant.samples[:24], key=lambda sample: sample.differs_at is None)
    return _sample_table(ordered[:_OPEN], variant), _sample_table(ordered[_OPEN:], variant), len(ordered[_OPEN:])


def _sample_table(chosen: Sequence[Sample], variant: VariantRecord) -> str:
    head = [("Prompt", ":--"), ("Original", ":--"), (code(variant.name, cell=True), ":--")]
    rows = []
    for sample in chosen:
        found = sides(sample, limit=_SAMPLE)
        base, other = found or ([(clean(sample.base, limit=_SAMPLE).strip(), False)], None)
        beyond = f"*differs from token {(sample.differs_at or 0) + 1}, beyond what is shown*"
        same = "*the same*" if sample.base == sample.variant else beyond
        rows.append([_cell([(sample.prompt.strip("\n"), False)]), _cell(base), _cell(other) if other else same])
    return figures.table(head, rows) if rows else ""


def _cell(pieces: Pieces) -> str:
    """The pieces as Markdown of one line; those that differ are bold."""
    return "".join("<br>".join(_row(row, bold=differs) for row in text.split("\n")) for text, differs in pieces).strip()


def _row(text: str, *, bold: bool) -> str:
    shown = inline(text, limit=_SAMPLE)
    if not shown:
        return " " if text else ""
    before, after = (" " if end.isspace() else "" for end in (text[0], text[-1]))
    return f"{before}<b>{shown}</b>{after}" if bold else f"{before}{shown}{after}"
