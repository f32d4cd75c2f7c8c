"""The gate: which variants may be published, and which one to recommend. Pure; docs/numbers.md explains.

A variant is refused when its files fail the load check, its tokenizer or chat template is not the
source's, its numbers are not finite, or its perplexity ratio or mean divergence passes the limit of its
class and of the model's size. The reason names what was found and the limit. The other variants go on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from hubbot.domain import Family, ImageCheck, Record, Score, Status, Trial, VariantRecord, WindowMeans
from hubbot.formats.names import find_variant
from hubbot.model.digests import template_digest
from hubbot.release.paired import divergence_of, surely_less
from hubbot.settings import GateSettings

__all__ = ["RECOMMENDED_KLD", "gate", "nominal_bits", "recommend"]

RECOMMENDED_KLD = 0.05  # nats; up to here a smaller file is the better advice (docs/numbers.md)
_COMMON_BITS = 4.85  # bits per weight of Q4_K_M, the advice where nothing was measured
_ALIKE = 1.01  # so many times as large is as large


def gate(record: Record, limits: GateSettings, *, tokenizer: str | None = None, need_load_check: bool = True) -> Record:
    """The record with a verdict on every variant that was made.

    tokenizer: `tokenizer_digest` (hubbot.model.digests) of the source's own tokenizer; None: variants are compared with each other.
    need_load_check: refuse a variant that nobody loaded. Failed variants stay failed. With
    `limits.enabled` false every variant that was made passes, and its complaint becomes a note.
    """
    if tokenizer is None:
        tokenizer = _most_common(variant.load_check.tokenizer for variant in record.variants if variant.load_check)
    template = template_digest(record.chat_template) if record.chat_template else None
    limits = limits.of_size(record.source.parameters)
    judged = []
    for variant in record.variants:
        complaint = next(
            _complaints(
                variant,
                limits,
                evaluated=record.evaluation is not None,
                identity={"tokenizer": tokenizer, "chat template": template},
                need_load_check=need_load_check,
            ),
            None,
        )
        judged.append(_judged(variant, complaint, enabled=limits.enabled))
    return replace(record, variants=tuple(judged))


def _judged(variant: VariantRecord, complaint: str | None, *, enabled: bool) -> VariantRecord:
    if variant.status is Status.FAILED:
        return variant
    if complaint is None:
        kept = variant.status if variant.status is Status.PUBLISHED else Status.PASSED
        return replace(variant, status=kept, reason=None)
    if enabled:
        return replace(variant, status=Status.REFUSED, reason=complaint)
    return replace(variant, status=Status.PASSED, reason=None, notes=(*variant.notes, f"not gated: {complaint}"))


def _complaints(
    variant: VariantRecord,
    limits: GateSettings,
    *,
    evaluated: bool,
    identity: Mapping[str, str | None],
    need_load_check: bool,
) -> Iterator[str]:
    """What is wrong with a variant, the gravest first."""
    check = variant.load_check
    if check is None and need_load_check:
        yield "its files were not loaded in their runtime; a variant passes only after its load check"
    if check and not check.loaded:
        yield f"{check.runtime} does not load it: {check.error or 'no reason given'}"
    if check and not check.passed:
        yield _disagreement(check.runtime, check.kld, check.tolerance, check.error) + _noted(variant)
    if check:
        yield from check.differences
        if check.passed and check.chat_template is None and identity["chat template"]:
            yield "it carries no chat template, and the source has one"
        found = {"tokenizer": check.tokenizer, "chat template": check.chat_template}
        for what, wanted in identity.items():
            if found[what] is not None and wanted is not None and found[what] != wanted:
                yield f"its {what} ({str(found[what])[:12]}) is not the source's ({wanted[:12]})"
    yield from (_blind(image) for image in variant.images if not image.passed)
    yield from (_turned_down(trial) for trial in variant.trials if trial.verdict in ("differs", "refuses"))
    if variant.score is not None:
        yield from _over(variant, variant.score, limits)
    elif evaluated:
        yield "the evaluation ran and gave it no numbers; every variant is measured on the same tokens"


def _disagreement(runtime: str, kld: float | None, tolerance: float | None, error: str | None) -> str:
    if kld is None or tolerance is None:
        return f"{runtime} loads it, but the check failed: {error or 'no reason given'}"
    return (
        f"{runtime} computes other logits than the sweep did from the same bytes: "
        f"divergence {kld:.3g} nats, tolerance {tolerance:.3g}"
    )


def _blind(image: ImageCheck) -> str:
    if image.distance is None or image.tolerance is None:
        return f"llama.cpp does not see the test image with {image.file}: {image.error or 'no reason given'}"
    return (
        f"with {image.file} llama.cpp makes other embeddings of the test image than transformers: they are "
        f"{image.distance:.2g} of their length apart, tolerance {image.tolerance:.2g}"
    )


def _turned_down(trial: Trial) -> str:
    name = f"{trial.runtime} {trial.release}"
    if trial.verdict == "refuses" or trial.difference is None or trial.tolerance is None:
        return f"{name}, as its users load it, refuses it: {trial.error or 'no reason given'}"
    return (
        f"{name}, as its users load it, gives other log-probabilities than the sweep did from the same bytes: "
        f"{trial.difference:.3g} nats apart on average, tolerance {trial.tolerance:.3g}"
    )


def _over(variant: VariantRecord, score: Score, limits: GateSettings) -> Iterator[str]:
    measured = {"perplexity": score.perplexity, "perplexity ratio": score.ratio, "mean divergence": score.kld.mean}
    for what, number in measured.items():
        if not math.isfinite(number):
            yield f"its {what} is not finite"
    bits = nominal_bits(variant)
    for what, table, unit in (
        ("perplexity ratio", limits.max_ratio, ""),
        ("mean divergence", limits.max_kld, " nats"),
    ):
        limit_class, limit = _limit(bits, table)
        if limit is not None and measured[what] > limit:
            yield (
                f"{what} {measured[what]:.4g}{unit} is above {limit:g}{unit}, the limit for {limit_class}-bit variants"
                f"{_noted(variant)}"
            )


def _noted(variant: VariantRecord) -> str:
    """What may be the reason: the first that was noted while it was made."""
    return f". Noted of it: {variant.notes[0]}" if variant.notes else ""


def _limit(bits: float, table: Mapping[str, float]) -> tuple[str, float | None]:
    """The limit of the largest class that is no larger than `bits`; below all classes, the smallest one's."""
    classes = sorted(table, key=float)
    if not classes:
        return "", None
    fitting = [name for name in classes if float(name) <= bits]
    name = fitting[-1] if fitting else classes[0]
    return name, table[name]


def nominal_bits(variant: VariantRecord) -> float:
    """The bits that a variant's name promises: 4 for Q4_K_M, gptq-4bit-128g and bnb-nf4, 16 for BF16.

    The name rather than the average, because a small model's average is lifted by an embedding that
    stays at 16 bits. A name outside the grammar falls back to the average, and without that to 1.
    """
    known = find_variant(variant.name)
    return known.bits if known else variant.bits_per_weight or 1.0


def recommend(variants: Iterable[VariantRecord], family: Family | None = None) -> VariantRecord | None:
    """The variant to take when in doubt, among those that passed.

    Measured: the smallest that surely diverges by at most RECOMMENDED_KLD on average, or else the smallest of which no
    other surely diverges less. Not measured: the one whose bits per weight are nearest to Q4_K_M's 4.85.
    Equal ones are ordered by name, so the choice does not depend on the order given.
    """
    passed = sorted(
        (v for v in variants if v.passed and family in (None, v.family)),
        key=lambda v: v.name,
    )
    measured = [v for v in passed if v.score is not None and math.isfinite(v.score.kld.mean)]
    if not measured:
        return min(passed, key=lambda v: abs(_size(v) - _COMMON_BITS), default=None)
    close = [v for v in measured if _at_most(v) <= RECOMMENDED_KLD]
    return _unbeaten(min(close, key=_size), close) if close else min(_closest(measured), key=_size)


def _at_most(variant: VariantRecord) -> float:
    """The upper end of its divergence's interval; the mean itself where no interval is known."""
    sure = variant.score.kld_interval if variant.score else None
    return sure[1] if sure else _mean(variant)


def _closest(measured: Sequence[VariantRecord]) -> list[VariantRecord]:
    """The one with the least divergence, and those that are not surely further away than it."""
    least = min(measured, key=_mean)
    return [v for v in measured if v is least or (_windows(v) and _windows(least) and not _surely_closer(least, v))]


def _unbeaten(smallest: VariantRecord, others: Sequence[VariantRecord]) -> VariantRecord:
    """The smallest, or the closest of those that are as large to within a hundredth and surely closer."""
    alike = [v for v in others if _size(v) <= _ALIKE * _size(smallest) and _surely_closer(v, smallest)]
    return min(alike, key=_mean, default=smallest)


def _surely_closer(one: VariantRecord, other: VariantRecord) -> bool:
    return surely_less(divergence_of(_windows(one)), divergence_of(_windows(other)))


def _windows(variant: VariantRecord) -> WindowMeans | None:
    return variant.score.windows if variant.score else None


def _mean(variant: VariantRecord) -> float:
    return variant.score.kld.mean if variant.score else math.inf


def _size(variant: VariantRecord) -> float:
    return variant.bits_per_weight or nominal_bits(variant)


def _most_common(digests: Iterable[str | None]) -> str | None:
    counted = Counter(digest for digest in digests if digest)
    return counted.most_common(1)[0][0] if counted else None
