"""Decides what a job will do, before anything is downloaded: sizes, sweeps, verdicts.

    found = plan(source, shapes, variants, settings, machine, costs)
    require(found)                    raises the first reason against it

Pure: the same values give the same plan. hubbot.planning.plan_view shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import PlainSerializer, PlainValidator

from hubbot.domain import Family, Source, Variant
from hubbot.errors import BudgetExceeded, HubbotError, LicenceForbids, Unsupported
from hubbot.formats import FAMILIES, weighed_by_gradients
from hubbot.formats.protocol import Cost
from hubbot.machine import Machine
from hubbot.planning.needs import (
    Need,
    Shapes,
    as_calibrating,
    checkpoint_bytes,
    pass_of_gradients,
    probing_checkpoint_bytes,
    probing_need,
    sweep_need,
)
from hubbot.planning.presets import Costs
from hubbot.record.fingerprint import shaping
from hubbot.release.licence import LicenceVerdict, judge_licence, require_licence
from hubbot.runtimes.layouts import layouts_of_run
from hubbot.runtimes.table import runs_in
from hubbot.settings import Settings
from hubbot.settings.sections import format_size

__all__ = [
    "NO_LIMIT",
    "FailedVariant",
    "Plan",
    "PlannedPass",
    "PlannedProbing",
    "PlannedSweep",
    "PlannedVariant",
    "Refusal",
    "device_elsewhere",
    "matrix",
    "plan",
    "require",
]

NO_LIMIT = 2**62  # bytes: the budget of a machine elsewhere, where none is set


Refusal: TypeAlias = Annotated[
    HubbotError,
    PlainValidator(
        lambda told: HubbotError.named(str(told["error"]), str(told["message"]))
    ),  # first: it drops what stands before
    PlainSerializer(lambda error: {"error": type(error).__name__, "message": str(error)}),
]
"""An error that also travels as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVariant:
    name: str
    family: Family
    file_bytes: int
    weight_bytes: int
    bits_per_weight: float
    runs_in: str = ""  # the runtimes that read it, by the table of runtimes


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedVariant:
    """A variant that was asked for and cannot be made; the others are."""

    name: str
    family: Family
    error: Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSweep:
    """Variants that one walk over the model makes together, and the peak that it comes to."""

    variants: tuple[str, ...]
    need: Need
    resumable: bool  # there is room for its checkpoints, which are part of the need


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedProbing:
    """What is measured before the first sweep, where variants are to have types that nobody knows yet."""

    variants: tuple[str, ...]
    probes: int  # each carries tokens of the calibration text through the model with one group of matrices rounded
    at_once: int  # of them that one walk over the model carries
    need: Need
    resumable: bool

    @property
    def walks(self) -> int:
        return -(-self.probes // self.at_once)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPass:
    """What passes forth and back before each sweep that has variants by the loss of the whole model."""

    variants: tuple[str, ...]
    tokens: int  # of the calibration text
    draws: int  # how often each passes back
    calibrating: int  # tokens that as much work would calibrate on


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    model: str  # Hub id, or the folder
    revision: str | None
    architecture: str
    parameters: int
    weight_bytes: int
    device: str
    variants: tuple[PlannedVariant, ...]
    sweeps: tuple[PlannedSweep, ...]
    need: Need  # the largest of the sweeps', with the finished files that are still there
    budget: Need
    licence: LicenceVerdict
    gated: bool
    failed: tuple[FailedVariant, ...] = ()
    notes: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()  # why it cannot be done; empty: it can
    probing: PlannedProbing | None = None
    passing: PlannedPass | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the variants that it comes to, those that cannot be made among them."""
        return (*(one.name for one in self.variants), *(one.name for one in self.failed))


def plan(
    source: Source,
    shapes: Shapes,
    variants: Sequence[Variant],
    settings: Settings,
    machine: Machine,
    costs: Costs,
    *,
    device: str,
    elsewhere: bool = False,
    notes: Sequence[str] = (),
) -> Plan:
    """What will be made, in which sweeps, at what peak, and everything that speaks against it.

    source: with what its own files say of it. costs: variant name -> exact size, or why it cannot be made
    (hubbot.formats.costs_of). notes: on the model, and on how the variants were chosen. With settings.strict, one that cannot be made speaks against the whole. device: cpu, cuda or cuda:N.
    elsewhere: for another machine than this one, of which the budgets are what it has.
    """
    budget = _budget_elsewhere(settings) if elsewhere else _budget(settings, machine, device)
    fetched = 0 if source.repo is None else shapes.weight_bytes
    sizes = {name: cost for name, cost in costs.items() if isinstance(cost, Cost)}
    cards = machine.cards if device.startswith("cuda") and not elsewhere else 1
    estimate = _Estimate(shapes, settings, sizes, device, fetched, cards)
    failed = dict(_failures(variants, costs, estimate, budget))
    makeable = [variant for variant in variants if variant.name not in failed]
    sweeps = tuple(_cut(makeable, estimate, budget))
    probing = _probing(makeable, estimate, budget)
    need = probing.need if probing else Need(disk=0, ram=0, vram=0)
    for sweep in sweeps:
        need = need | sweep.need
    licence = judge_licence(source.license, source.license_name, source.license_link)
    return Plan(
        model=source.repo or source.folder,
        revision=source.revision,
        architecture=source.architecture,
        parameters=source.parameters,
        weight_bytes=shapes.weight_bytes,
        device=device,
        variants=tuple(_planned(variant, sizes[variant.name], source, settings) for variant in makeable),
        sweeps=sweeps,
        need=need,
        budget=budget,
        licence=licence,
        gated=source.gated,
        failed=tuple(
            FailedVariant(name=variant.name, family=variant.family, error=failed[variant.name])
            for variant in variants
            if variant.name in failed
        ),
        notes=(*notes, *_of_costs(makeable, sizes), *_without_checkpoints([*sweeps, probing])),
        refusals=(
            *_licence_refusal(licence, settings),
            *_budget_refusals(sweeps, budget),
            *(_probing_refusals(probing, budget) if probing else ()),
            *(failed.values() if settings.strict or not makeable else ()),
        ),
        probing=probing,
        passing=_passing(makeable, estimate),
    )


def _probing(variants: Sequence[Variant], estimate: _Estimate, budget: Need) -> PlannedProbing | None:
    """As many probes at once as the budget has room for, one at least; None where nothing is to be measured."""
    asking = [variant.name for variant in variants if estimate.costs[variant.name].probes]
    if not asking:
        return None
    probes = max(estimate.costs[name].probes for name in asking)
    at_once = probes
    while at_once > 1 and not _fits(estimate.of_probes(at_once), budget):
        at_once -= 1
    size = probing_checkpoint_bytes(at_once, estimate.shapes, estimate.settings)
    need, resumable = _with_checkpoints(estimate.of_probes(at_once), size, budget)
    return PlannedProbing(variants=tuple(asking), probes=probes, at_once=at_once, need=need, resumable=resumable)


def _passing(variants: Sequence[Variant], estimate: _Estimate) -> PlannedPass | None:
    asking = [variant.name for variant in weighed_by_gradients(variants, shaping(estimate.settings))]
    if not asking:
        return None
    found = pass_of_gradients(estimate.shapes, estimate.settings)
    return PlannedPass(
        variants=tuple(asking),
        tokens=found.forth,
        draws=found.draws,
        calibrating=as_calibrating(found, estimate.shapes),
    )


def _of_costs(variants: Sequence[Variant], sizes: Mapping[str, Cost]) -> Iterator[str]:
    """What the families say of their variants, once for all of which it is true."""
    names: dict[str, list[str]] = {}
    for variant in variants:
        if note := sizes[variant.name].note:
            names.setdefault(note, []).append(variant.name)
    return (f"{', '.join(told)}: {note}" for note, told in names.items())


def _failures(
    variants: Sequence[Variant], costs: Costs, estimate: _Estimate, budget: Need
) -> Iterator[tuple[str, HubbotError]]:
    """Variants that cannot be made, even in a sweep of their own, and why."""
    for variant in variants:
        cost = costs[variant.name]
        if isinstance(cost, Unsupported):
            yield variant.name, cost
            continue
        alone = PlannedSweep(variants=(variant.name,), need=estimate.of([variant]), resumable=False)
        if over := next(_budget_refusals([alone], budget), None):
            yield variant.name, over


def require(found: Plan) -> None:
    """Raise the first refusal of a plan."""
    if found.refusals:
        raise found.refusals[0]


def matrix(found: Plan) -> dict[str, list[dict[str, Any]]]:
    """The plan as a job matrix of GitHub: one job for each sweep, with the variants it makes.

    The first one is told of those that cannot be made too, so that their reasons come into the record.

    release and part name folder and artifact of what a job makes: the same for the same weights, and
    without a character that GitHub refuses in a name.
    """
    slug = re.sub(r"[^A-Za-z0-9._]+", "--", found.model.strip("/"))
    told = [variant.name for variant in found.failed]
    release = f"{slug[-80:]}-{found.revision[:8]}" if found.revision else slug[-80:]
    return {
        "include": [
            {
                "model": found.model,
                "revision": found.revision or "",
                "variants": ",".join((*sweep.variants, *(told if number == 1 else ()))),
                "release": release,
                "part": f"{number}-of-{len(found.sweeps)}",
            }
            for number, sweep in enumerate(found.sweeps, start=1)
        ]
    }


@dataclass(frozen=True, slots=True)
class _Estimate:
    shapes: Shapes
    settings: Settings
    costs: Mapping[str, Cost]
    device: str
    fetched: int
    cards: int

    def of_probes(self, probes: int) -> Need:
        return probing_need(probes, self.shapes, self.settings, device=self.device, source_bytes=self.fetched)

    def checkpoints(self, variants: Sequence[Variant]) -> int:
        return checkpoint_bytes(variants, self.shapes, self.settings)

    def of(self, variants: Sequence[Variant]) -> Need:
        return sweep_need(
            variants,
            self.shapes,
            self.costs,
            self.settings,
            device=self.device,
            source_bytes=self.fetched,
            cards=self.cards,
        )


def _cut(variants: Sequence[Variant], estimate: _Estimate, budget: Need) -> Iterator[PlannedSweep]:
    """As few sweeps as stay under the budget, in the order given, families together."""
    order = list(FAMILIES)
    waiting = sorted(variants, key=lambda variant: order.index(variant.family))
    kept = 0  # bytes of files that earlier sweeps left
    while waiting:
        count = len(waiting)
        while count > 1 and not _fits(_plus(estimate.of(waiting[:count]), kept), budget):
            count -= 1
        chosen, waiting = waiting[:count], waiting[count:]
        need, resumable = _with_checkpoints(_plus(estimate.of(chosen), kept), estimate.checkpoints(chosen), budget)
        yield PlannedSweep(variants=tuple(variant.name for variant in chosen), need=need, resumable=resumable)
        kept += sum(estimate.costs[variant.name].file_bytes for variant in chosen)


def _with_checkpoints(need: Need, size: int, budget: Need) -> tuple[Need, bool]:
    """With the disk that they take, where there is room: to begin a sweep anew costs less than to make two of one."""
    kept = _plus(need, size)
    return (kept, True) if kept.disk <= budget.disk else (need, False)


def _without_checkpoints(planned: Sequence[PlannedSweep | PlannedProbing | None]) -> Iterator[str]:
    if any(one and not one.resumable for one in planned):
        yield "the disk has no room for checkpoints: a run that is stopped in a sweep begins that sweep anew"


def _plus(need: Need, disk: int) -> Need:
    return Need(disk=need.disk + disk, ram=need.ram, vram=need.vram)


def _fits(need: Need, budget: Need) -> bool:
    return need.disk <= budget.disk and need.ram <= budget.ram and need.vram <= budget.vram


def _budget(settings: Settings, machine: Machine, device: str) -> Need:
    """What may be used: the settings' budgets, and no more than there is."""
    disk, ram, vram = settings.budget.disk, settings.budget.ram, settings.budget.vram
    there = (machine.vram_free or 0) if device.startswith("cuda") else 0
    return Need(
        disk=machine.disk_free if disk is None else min(disk, machine.disk_free),
        ram=machine.ram_free if ram is None else min(ram, machine.ram_free),
        vram=there if vram is None else min(vram, there),
    )


def _budget_elsewhere(settings: Settings) -> Need:
    """What the machine that will do the work has, as far as the budgets say."""
    told = settings.budget
    disk, ram, vram = (NO_LIMIT if value is None else value for value in (told.disk, told.ram, told.vram))
    return Need(disk=disk, ram=ram, vram=vram)


def device_elsewhere(settings: Settings) -> str:
    """The device of a machine that only the settings describe: one with GPU memory has a GPU."""
    if settings.device != "auto":
        return settings.device
    return "cuda" if settings.budget.vram else "cpu"


def _planned(variant: Variant, cost: Cost, source: Source, settings: Settings) -> PlannedVariant:
    also = layouts_of_run(
        quantized_head=settings.gptq.lm_head, experts=source.experts, architecture=source.architecture
    )
    split = cost.file_bytes > settings.gguf.shard_size or settings.gguf.first_shard == "metadata"
    return PlannedVariant(
        name=variant.name,
        family=variant.family,
        file_bytes=cost.file_bytes,
        weight_bytes=cost.weight_bytes,
        bits_per_weight=cost.bits_per_weight,
        runs_in=runs_in(variant.name, also, sharded=split and variant.family is Family.GGUF),
    )


def _licence_refusal(licence: LicenceVerdict, settings: Settings) -> Iterator[HubbotError]:
    try:
        require_licence(licence, allow_unlicensed=settings.licence.allow_unlicensed)
    except LicenceForbids as error:
        yield error


def _budget_refusals(sweeps: Sequence[PlannedSweep], budget: Need) -> Iterator[HubbotError]:
    """One error for each resource that even the smallest sweeps exceed."""
    advice = {
        "disk": "Free some space, put --out on a larger disk, or ask for fewer variants at a time.",
        "ram": "Ask for fewer or shorter windows (--samples, evaluation.windows), or use a machine with more memory.",
        "vram": "Use a larger GPU, --device cpu, or fewer GPTQ variants.",
    }
    for resource, next_step in advice.items():
        worst = max(sweeps, key=lambda sweep: int(getattr(sweep.need, resource)), default=None)
        if worst is None:
            return
        needed, there = int(getattr(worst.need, resource)), int(getattr(budget, resource))
        if needed > there:
            msg = f"The work needs {format_size(needed)} of {_WORDS[resource]} for {', '.join(worst.variants)}; {format_size(there)} may be used. {next_step}"
            yield BudgetExceeded(msg)


def _probing_refusals(probing: PlannedProbing, budget: Need) -> Iterator[HubbotError]:
    """Where not even one probe has room."""
    for resource, word in _WORDS.items():
        needed, there = int(getattr(probing.need, resource)), int(getattr(budget, resource))
        if needed > there:
            msg = (
                f"Measuring the types of {', '.join(probing.variants)} needs {format_size(needed)} of {word} even with one probe at a "
                f"time; {format_size(there)} may be used. Ask for fewer or shorter windows of calibration (--samples, --length), or for "
                "the plain types."
            )
            yield BudgetExceeded(msg)


_WORDS = {"disk": "disk", "ram": "memory (RAM)", "vram": "GPU memory"}
