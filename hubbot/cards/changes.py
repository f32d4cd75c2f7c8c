"""What changed between two records of the same model, and what the gate said: for reviewers. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from hubbot.cards import figures
from hubbot.cards.escape import code, inline, line
from hubbot.domain import Family, Record, Status, VariantRecord
from hubbot.record.fingerprint import matters
from hubbot.release.paired import Means, divergence_of, surely_less

__all__ = ["Change", "Kind", "changelog", "changes", "changes_table", "conditions", "verdicts"]


class Kind(StrEnum):
    NEW = "new"
    GONE = "gone"
    BETTER = "better"
    WORSE = "worse"
    CHANGED = "changed"
    SAME = "same"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One variant in the old release and in the new one; None where it is not part of it."""

    name: str
    kind: Kind
    old: VariantRecord | None
    new: VariantRecord | None


def changes(old: Record | None, new: Record) -> tuple[Change, ...]:
    """Every variant of either release, in the order of the new record, those that are gone last.

    Only variants that passed are part of a release. Better and worse go by mean divergence, and where both records keep
    their windows only as far as the difference on the same windows is sure; or by perplexity where no divergence was
    measured. Numbers are compared only when both releases were evaluated on the same text and windows, otherwise the
    variant has just changed.
    """
    before = {v.name: v for v in old.variants if v.passed} if old else {}
    after = {v.name: v for v in new.variants if v.passed}
    comparable = old is not None and _same_text(old, new)
    return tuple(
        Change(
            name=name,
            kind=_kind(before.get(name), after.get(name), comparable=comparable),
            old=before.get(name),
            new=after.get(name),
        )
        for name in [*after, *(name for name in before if name not in after)]
    )


def _same_text(old: Record, new: Record) -> bool:
    return old.evaluation is not None and new.evaluation is not None and old.evaluation.sha256 == new.evaluation.sha256


def _kind(old: VariantRecord | None, new: VariantRecord | None, *, comparable: bool) -> Kind:
    if old is None:
        return Kind.NEW
    if new is None:
        return Kind.GONE
    if {(f.path, f.sha256) for f in old.files} == {(f.path, f.sha256) for f in new.files}:
        return Kind.SAME
    one, two = _quality(old), _quality(new)
    if not comparable or one is None or two is None or math.isclose(one, two, rel_tol=1e-4, abs_tol=1e-9):
        return Kind.CHANGED
    if (before := _windows(old)) and (after := _windows(new)):
        surely = surely_less(after, before), surely_less(before, after)
        return Kind.BETTER if surely[0] else Kind.WORSE if surely[1] else Kind.CHANGED
    return Kind.BETTER if two < one else Kind.WORSE


def _windows(variant: VariantRecord) -> Means | None:
    return divergence_of(variant.score.windows) if variant.score else None


def _quality(variant: VariantRecord) -> float | None:
    if variant.score is None:
        return None
    numbers = (variant.score.kld.mean, variant.score.perplexity)
    return next((number for number in numbers if math.isfinite(number)), None)


def changes_table(found: tuple[Change, ...]) -> str:
    """A Markdown table: old and new size, perplexity, divergence and agreement, with the change."""
    head = [("Variant", ":--"), ("", ":--"), ("Size", "--:"), ("Perplexity", "--:"), ("KL mean", "--:")]
    rows = [
        [
            code(change.name, cell=True),
            _word(change),
            _pair(change, lambda v: float(sum(f.size for f in v.files)) if v.files else None, figures.size),
            _pair(change, lambda v: v.score.perplexity if v.score else None, figures.perplexity),
            _pair(change, lambda v: v.score.kld.mean if v.score else None, figures.nats),
            _pair(change, lambda v: v.score.top1 if v.score else None, figures.percent),
        ]
        for change in found
    ]
    return figures.table([*head, ("Same top token", "--:")], rows) if rows else ""


def _word(change: Change) -> str:
    return f"**{change.kind}**" if change.kind in (Kind.WORSE, Kind.GONE) else str(change.kind)


def _pair(
    change: Change, number: Callable[[VariantRecord], float | None], shown: Callable[[float | None], str | None]
) -> str | None:
    old = shown(number(change.old)) if change.old else None
    new = shown(number(change.new)) if change.new else None
    if old is None or new is None or old == new:
        return new or old
    if "%" in new:
        return f"{old} → {new}"
    moved = figures.change(number(change.old) if change.old else None, number(change.new) if change.new else None)
    return f"{old} → {new}{f' ({moved})' if moved else ''}"


def conditions(old: Record, new: Record) -> list[str]:
    """What else differs between two releases, as Markdown lines: source, tools, texts, settings."""
    pairs = {
        "source revision": (old.source.revision, new.source.revision),
        "hubbot": (old.hubbot.get("version"), new.hubbot.get("version")),
        "calibration text": (_digest(old.calibration), _digest(new.calibration)),
        "evaluation text": (_digest(old.evaluation), _digest(new.evaluation)),
        "conversations": (
            _digest(old.conversations and old.conversations.text),
            _digest(new.conversations and new.conversations.text),
        ),
        **{name: (old.tools.get(name), new.tools.get(name)) for name in sorted({*old.tools, *new.tools})},
    }
    pairs["chat template"] = (_template(old), _template(new))
    lines = [
        f"{inline(name, limit=60)}: {_told(one)} → {_told(two)}" for name, (one, two) in pairs.items() if one != two
    ]
    if files := _source_files(old, new):
        more = f" and {len(files) - 8} more" if len(files) > 8 else ""
        lines.append(f"files of the source: {', '.join(code(path) for path in files[:8])}{more}")
    settings = sorted(key for key in {*old.config, *new.config} if old.config.get(key) != new.config.get(key))
    return [*lines, f"settings: {', '.join(code(key) for key in settings[:20])}"] if settings else lines


def changelog(old: Record | None, new: Record, family: Family, *, before: str) -> str:
    """The section of a card that says what this release changed of one family and why; empty where nothing did.

    before: Markdown, where the files of the old release stay.
    """
    if old is None:
        return ""
    mine = [one for one in changes(old, new) if any(v and v.family is family for v in (one.old, one.new))]
    other = conditions(old, new)
    moved = [one for one in mine if one.kind is not Kind.SAME]
    if not moved and not other:
        return ""
    table = f"\n\n{changes_table(tuple(moved))}" if moved else ""
    why = "\n".join(f"- {one}" for one in other) or "- nothing but the files themselves"
    return f"## What changed\n\nAgainst the release before this one:\n\n{why}{table}\n\nIts files and its card stay at {before}."


def _source_files(old: Record, new: Record) -> list[str]:
    """Files of the source that reach a variant and differ: weights, tokenizer, configuration, template."""
    one, two = old.source.files, new.source.files
    return [path for path in sorted({*one, *two}) if matters(path) and one.get(path) != two.get(path)]


def _template(record: Record) -> str | None:
    text = record.chat_template
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else None


def _told(value: str | None) -> str:
    return code(value, limit=60) if value else "none"


def _digest(text: object) -> str | None:
    digest = getattr(text, "sha256", None)
    return f"{getattr(text, 'dataset', '')} {digest[:12]}" if isinstance(digest, str) else None


def verdicts(record: Record) -> tuple[tuple[str, Status, str], ...]:
    """(variant, status, reason) for every variant of a run; those that did not pass first."""
    told = [(v.name, v.status, line(v.reason or "", limit=300)) for v in record.variants]
    return tuple(sorted(told, key=lambda verdict: verdict[1].passed))
