"""How long a job will take: as long as jobs of similar size took, else by rates that were measured, else not known."""

from __future__ import annotations

from collections.abc import Iterable

from hubbot.bot.ledger import mirror
from hubbot.bot.ledger.store import Ledger
from hubbot.cards.escape import inline
from hubbot.cards.figures import duration
from hubbot.hub.seen import Release
from hubbot.planning.needs import evaluation_tokens
from hubbot.planning.plan import Plan
from hubbot.planning.plan_view import weights
from hubbot.settings import Settings

__all__ = ["expected"]

_SIMILAR = 2  # times more or fewer weights

# docs/benchmarks.md, eighteen variants on an H100: seconds of a block of 0.22 B weights.
_BLOCK = 0.22e9
_READ = 0.14 + 0.54  # and calibrated on 262,144 tokens
_ENCODE = (0.39 + 1.72 + 0.05) / 18  # a variant
_EVALUATE = 2.65 / 19 / 65_536  # a variant or the original, and token


def expected(plan: Plan, ledger: Ledger, settings: Settings) -> str:
    """A sentence in Markdown about the time that a plan takes, with what it goes by."""
    jobs = {
        (one.model, one.revision): one
        for one in mirror.every_release(ledger)
        if one.seconds and plan.parameters <= _SIMILAR * one.weights <= _SIMILAR**2 * plan.parameters
    }
    if jobs:
        return _as_before(jobs.values())
    unknown = "No job of similar size was made here yet."
    if not plan.device.startswith("cuda"):
        return f"Time: not known. {unknown} What a machine without a GPU takes for whole models was not measured."
    besides = "the measuring of types, download" if plan.probing else "download"
    return (
        f"Time: {duration(_sweep_seconds(plan, settings))} for the sweep, if the GPU is as fast as the H100 whose rates go into this "
        f"(blocks of Llama 3 8B's shape, docs/benchmarks.md); {besides}, load check and upload come besides. "
        f"{unknown}"
    )


def _as_before(jobs: Iterable[Release]) -> str:
    found = sorted(jobs, key=lambda one: one.seconds)
    machines = ", ".join(sorted({one.machine for one in found if one.machine}))
    times = _range([str(duration(one.seconds)) for one in found])
    sizes = _range([weights(count) for count in sorted(one.weights for one in found)])
    variants = _range([str(count) for count in sorted(len(one.variants) for one in found)])
    took = f"as {len(found)} jobs of similar size took" if len(found) > 1 else "as the one job of similar size took"
    on = f", on {inline(machines, limit=200)}" if machines else ""
    return f"Time: {times}, {took} ({sizes} weights, {variants} variants{on}); the upload comes besides."


def _range(ordered: list[str]) -> str:
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


def _sweep_seconds(plan: Plan, settings: Settings) -> float:
    """By the rates of one GPU; every sweep reads and calibrates for itself."""
    made = len(plan.variants)
    tokens = evaluation_tokens(settings, chat=True) if settings.evaluation.wanted else 0
    seconds = len(plan.sweeps) * (_READ + _EVALUATE * tokens) + made * (_ENCODE + _EVALUATE * tokens)
    return seconds * plan.parameters / _BLOCK
