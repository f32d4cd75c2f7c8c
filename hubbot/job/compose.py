"""The record of a run, put together from what its sweeps tell."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hubbot.domain import SCHEMA_VERSION, Peak, Perplexity, Record, Source, Status, TextRecord, VariantRecord, family_of
from hubbot.formats.names import parse_variant, parse_variants
from hubbot.machine import measure_machine
from hubbot.machine.versions import commit, tools, version
from hubbot.record.files import hashed
from hubbot.record.fingerprint import shaping
from hubbot.settings import Settings

__all__ = ["recorded", "spent"]

Made = Sequence[Mapping[str, Any]]  # the answers of `hubbot.child.stages:make`, one a sweep


def recorded(made: Made, *, source: Source, settings: Settings, command: str, out: Path) -> Record:
    """The record before load check and gate; every file of every variant is hashed for it."""
    first = made[0]
    return Record(
        schema=SCHEMA_VERSION,
        hubbot={"version": version(), "commit": commit()},
        tools=tools(),
        hardware=measure_machine(out, settings.device).hardware,
        command=command,
        config=shaping(settings),
        source=source,
        calibration=_value(TextRecord, _first(made, "calibration")),
        evaluation=_value(TextRecord, first["evaluation"]),
        base=_value(Perplexity, _first(made, "base")),
        variants=_in_order(settings, [_variant(out, values) for part in made for values in part["variants"]]),
        timings={},
        peak=Peak(),
        chat_template=first["chat_template"],
        special_tokens=first["special_tokens"],
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def spent(stages: Mapping[str, float], made: Made) -> dict[str, float]:
    """Seconds of every stage, the sweep's taken apart into its steps, so that nothing is counted twice.

    A sweep that goes on after a kill counts the steps of the killed run too.
    """
    steps: dict[str, float] = {}
    for part in made:
        for name, seconds in part["timings"].items():
            steps[f"sweep: {name}"] = steps.get(f"sweep: {name}", 0.0) + seconds
    apart: dict[str, float] = {}
    for stage, seconds in stages.items():
        if stage == "sweep":
            apart |= {**steps, "sweep: rest": max(0.0, seconds - sum(steps.values()))}
        else:
            apart[stage] = seconds
    return apart


def _variant(out: Path, values: Mapping[str, Any]) -> VariantRecord:
    rest = {key: value for key, value in values.items() if key != "paths"}
    files = hashed([Path(path) for path in values["paths"]], out)
    family = family_of(parse_variant(values["name"]))
    return TypeAdapter(VariantRecord).validate_python(
        {"status": Status.PASSED, **rest, "family": family, "files": [asdict(file) for file in files]}
    )


def _in_order(settings: Settings, variants: Sequence[VariantRecord]) -> tuple[VariantRecord, ...]:
    order = [variant.name for variant in parse_variants(settings.variants)]
    return tuple(sorted(variants, key=lambda variant: order.index(variant.name)))


def _first(made: Made, key: str) -> Any:
    """What the first sweep that has it tells."""
    return next((part[key] for part in made if part[key] is not None), None)


def _value(kind: Any, values: Any) -> Any:
    return None if values is None else TypeAdapter(kind).validate_python(values)
