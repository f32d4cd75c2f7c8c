"""A plan as JSON, as a table for people, and as Markdown for a page of GitHub's or the Hub's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hubbot.cards.escape import code, inline
from hubbot.errors import HubbotError
from hubbot.formats.gguf.allocation import TOKENS
from hubbot.planning.plan import NO_LIMIT, Plan, PlannedPass, PlannedProbing
from hubbot.settings.sections import format_size

__all__ = ["as_json", "as_markdown", "as_table", "weights"]


def as_json(found: Plan) -> dict[str, Any]:
    """Every figure in bytes; `failed` are variants that cannot be made, `fits` says whether the rest can, `refusals` why not."""
    values = {name: value for name, value in asdict(found).items() if name not in ("refusals", "failed")}
    refusals = [_plain(error) for error in found.refusals]
    failed = [{"name": one.name, "family": one.family, **_plain(one.error)} for one in found.failed]
    return {**values, "failed": failed, "fits": not refusals, "refusals": refusals}


def _plain(error: HubbotError) -> dict[str, str]:
    return {"error": type(error).__name__, "message": str(error)}


def as_table(found: Plan) -> RenderableType:
    """What would be made and what it takes; text of the model's is shown as text, never as markup."""
    variants = Table(title=Text(f"{found.model}  {found.architecture}, {weights(found.parameters)} weights"))
    for heading, justify in (("variant", "left"), ("size", "right"), ("bits/weight", "right"), ("sweep", "right")):
        variants.add_column(heading, justify=justify)  # type: ignore[arg-type]
    sweeps = {name: number for number, sweep in enumerate(found.sweeps, start=1) for name in sweep.variants}
    for variant in found.variants:
        row = (
            variant.name,
            format_size(variant.file_bytes),
            f"{variant.bits_per_weight:.2f}",
            str(sweeps[variant.name]),
        )
        variants.add_row(*map(Text, row))
    for failed in found.failed:
        variants.add_row(Text(failed.name), Text("failed", style="bold red"), "", "")
    needs = Table(title="peak against what may be used")
    for heading in ("", "needed", "available"):
        needs.add_column(heading, justify="left" if not heading else "right")
    for name, needed, there in _resources(found):
        needs.add_row(name, Text(format_size(needed), style="" if needed <= there else "bold red"), _limit(there))
    verdicts = list(_runtimes(found))
    verdicts += [Text(told) for told in _before(found)]
    verdicts += [Text(f"licence: {found.licence.reason}")]
    verdicts += [
        Text("gated: the author asks for consent before a download; accept it with your account")
    ] * found.gated
    verdicts += [Text(f"note: {note}") for note in found.notes]
    verdicts += [Text(f"{failed.name} cannot be made: {failed.error}", style="bold red") for failed in found.failed]
    verdicts += [Text(f"refused: {error}", style="bold red") for error in found.refusals]
    return Group(variants, needs, *verdicts)


def as_markdown(found: Plan) -> str:
    """The same as Markdown, in which nothing of the model's is markup."""
    sizes = [
        f"| {code(one.name)} | {format_size(one.file_bytes)} | {one.bits_per_weight:.2f} |" for one in found.variants
    ]
    needs = [
        f"| {name} | {format_size(needed)} | {_limit(there)} |" for name, needed, there in _resources(found) if needed
    ]
    told = [f"Licence: {found.licence.reason}", *_before(found), *found.notes]
    told += [f"{failed.name} cannot be made: {failed.error}" for failed in found.failed]
    told += [f"Refused: {error}" for error in found.refusals]
    return "\n".join(
        [
            f"## Plan for {inline(found.model)}",
            "",
            "| variant | size | bits per weight |",
            "| --- | ---: | ---: |",
            *sizes,
            "",
            f"{len(found.sweeps)} jobs, each one walk over the model. Peak:",
            "",
            "| | needed | may be used |",
            "| --- | ---: | ---: |",
            *needs,
            "",
            *(f"- {inline(one, limit=600)}" for one in told),
        ]
    )


def _before(found: Plan) -> Iterator[str]:
    """What is done before sweeps."""
    if found.probing:
        yield _probing(found.probing)
    if found.passing:
        yield _passing(found.passing)


def _passing(found: PlannedPass) -> str:
    draws = "once" if found.draws == 1 else f"{found.draws} times each"
    return (
        f"before the sweep: {found.tokens:,} tokens of the calibration pass forth through the model for {', '.join(found.variants)}, and back {draws}, "
        f"with at most the products of calibrating on {found.calibrating:,} tokens; rounding these variants takes about twice as long as without -e2e"
    )


def _probing(found: PlannedProbing) -> str:
    """What is measured before the first sweep, and what it costs."""
    walks = "one walk" if found.walks == 1 else f"{found.walks} walks"
    return (
        f"first: the types of {', '.join(found.variants)} are measured, by {found.probes} probes of {TOKENS:,} tokens each in {walks} over "
        f"the model, which read and calibrate it once more each (peak {format_size(found.need.ram)} of RAM); the sizes above are the most "
        "that these variants come to"
    )


def _runtimes(found: Plan) -> Iterator[Text]:
    """A line for every set of runtimes, with the variants that it reads."""
    for runtimes in dict.fromkeys(variant.runs_in for variant in found.variants):
        names = ", ".join(variant.name for variant in found.variants if variant.runs_in == runtimes)
        yield Text(f"{names}: runs in {runtimes or 'no runtime that is known here'}")


def _resources(found: Plan) -> list[tuple[str, int, int]]:
    rows = [("disk", found.need.disk, found.budget.disk), ("RAM", found.need.ram, found.budget.ram)]
    return [*rows, ("VRAM", found.need.vram, found.budget.vram)] if found.need.vram else rows


def weights(count: int) -> str:
    """How many weights a model has, for people: 0.13 B."""
    return f"{count / 1e9:.2f} B" if count >= 1e8 else f"{count / 1e6:.2f} M"


def _limit(budget: int) -> str:
    return format_size(budget) if budget < NO_LIMIT else "not said"
