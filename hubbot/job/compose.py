"""The record of a run, put together from what its sweeps tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from hubbot.child.messages import MakeAnswer
from hubbot.domain import SCHEMA_VERSION, Conversations, File, Gguf, Peak, Record, Source, Status, VariantRecord
from hubbot.formats import FAMILIES
from hubbot.formats.names import names_made, parse_variant
from hubbot.machine import measure_machine
from hubbot.machine.versions import commit, tools, version
from hubbot.planning.plan import FailedVariant
from hubbot.record.files import listed
from hubbot.record.fingerprint import shaping
from hubbot.settings import Settings

__all__ = ["recorded", "spent", "with_digests"]


def recorded(
    sweeps: Sequence[MakeAnswer],
    failed: Sequence[FailedVariant] = (),
    *,
    source: Source,
    settings: Settings,
    command: str,
    out: Path,
    types: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> Record:
    """The record before load check and gate; no file is hashed yet.

    types: mix -> tensor -> type, of variants that have their types by measured divergence.
    failed: what the plan found that cannot be made.
    """
    first = sweeps[0]
    variants = [variant for sweep in sweeps for variant in (*_made(sweep, out, types), *_failed(sweep))]
    variants += [
        VariantRecord(name=one.name, family=one.family, status=Status.FAILED, reason=str(one.error)) for one in failed
    ]
    return Record(
        schema=SCHEMA_VERSION,
        hubbot={"version": version(), "commit": commit()},
        tools=tools(package for family in FAMILIES.values() for package in family.ABOUT.packages),
        hardware=measure_machine(out, settings.device).hardware,
        command=command,
        config=shaping(settings),
        source=source,
        calibration=next((sweep.calibration for sweep in sweeps if sweep.calibration), None),
        evaluation=first.evaluation,
        base=next((sweep.base for sweep in sweeps if sweep.base), None),
        variants=_in_order(settings, variants),
        experts=next((sweep.experts for sweep in sweeps if sweep.experts), ()),
        timings={},
        peak=Peak(),
        chat_template=first.chat_template,
        special_tokens=first.special_tokens,
        conversations=Conversations.together(sweep.conversations for sweep in sweeps),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def with_digests(record: Record, digest: Callable[[File], File]) -> Record:
    """With the sha256 of every file, which `digest` puts in."""
    variants = (replace(variant, files=tuple(map(digest, variant.files))) for variant in record.variants)
    return replace(record, variants=tuple(variants))


def spent(stages: Mapping[str, float], sweeps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Seconds of every stage, the sweep's taken apart into its steps, so that nothing is counted twice.

    sweeps: seconds of the steps of each.
    A sweep that goes on after a kill counts the steps of the killed run too.
    """
    steps: dict[str, float] = {}
    for sweep in sweeps:
        for name, seconds in sweep.items():
            steps[f"sweep: {name}"] = steps.get(f"sweep: {name}", 0.0) + seconds
    apart: dict[str, float] = {}
    for stage, seconds in stages.items():
        if stage == "sweep":
            apart |= {**steps, "sweep: rest": max(0.0, seconds - sum(steps.values()))}
        else:
            apart[stage] = seconds
    return apart


def _made(sweep: MakeAnswer, out: Path, types: Mapping[str, Mapping[str, str]]) -> Iterator[VariantRecord]:
    for name, made in sweep.made.items():
        variant = parse_variant(name)
        mix = variant.type if isinstance(variant, Gguf) and variant.allocated else ""
        yield VariantRecord(
            name=name,
            family=variant.family,
            status=Status.PASSED,
            files=listed(made.paths, out),
            bits_per_weight=made.bits_per_weight,
            score=made.score,
            seconds=made.seconds,
            notes=made.notes,
            layer_errors=made.layer_errors,
            types=dict(types.get(mix, {})),
        )


def _failed(sweep: MakeAnswer) -> Iterator[VariantRecord]:
    for name, reason in sweep.failed.items():
        yield VariantRecord(name=name, family=parse_variant(name).family, status=Status.FAILED, reason=reason)


def _in_order(settings: Settings, variants: Sequence[VariantRecord]) -> tuple[VariantRecord, ...]:
    order = names_made(settings.variants, [variant.name for variant in variants])
    return tuple(sorted(variants, key=lambda variant: order.index(variant.name)))
