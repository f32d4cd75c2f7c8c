"""What the variants that are asked for come to for the model at hand. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hubbot.cards.memory import BUFFERS, cache_bytes, context, memory_of
from hubbot.domain import Source, Variant
from hubbot.errors import Unsupported, UnsupportedShape
from hubbot.formats.names import Wanted
from hubbot.formats.protocol import Cost
from hubbot.settings.sections import format_size

__all__ = ["Costs", "Resolution", "resolve"]

Costs = Mapping[str, Cost | Unsupported]  # variant -> its size, or why it cannot be made of this model


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    variants: tuple[Variant, ...]  # in the order asked for
    costs: Costs
    notes: tuple[str, ...]  # what stands in for what, and why


def resolve(wanted: Sequence[Wanted], costs_of: Callable[[Sequence[Variant]], Costs], source: Source) -> Resolution:
    """Every variant with its cost; of a preset, the one with the largest group size that divides the model's widths.

    Where a memory is to be fitted, the best type that fits it. Raises Unsupported where none does and nothing else is
    asked for.
    """
    costs = dict(costs_of([one.variant for one in wanted]))
    chosen: dict[str, Variant] = {}
    notes = []
    for one in wanted:
        if one.memory is not None:
            variant, told = _best_fit(one, one.memory, costs_of, costs, source)
            if variant is None and not chosen:
                raise Unsupported(told)
            notes.append(told)
            chosen |= {variant.name: variant} if variant else {}
            continue
        why = costs[one.variant.name]
        other = _stand_in(one, costs_of, costs) if isinstance(why, UnsupportedShape) else None
        if other is not None:
            notes.append(f"{other.name} in place of {one.variant.name} of the preset {one.preset}: {why}")
        variant = other or one.variant
        chosen.setdefault(variant.name, variant)
    return Resolution(variants=tuple(chosen.values()), costs={name: costs[name] for name in chosen}, notes=tuple(notes))


def _stand_in(
    wanted: Wanted, costs_of: Callable[[Sequence[Variant]], Costs], costs: dict[str, Cost | Unsupported]
) -> Variant | None:
    """The first that can be made; its cost joins the others."""
    _ask(wanted, costs_of, costs)
    return next((variant for variant in wanted.stand_ins if isinstance(costs[variant.name], Cost)), None)


def _ask(wanted: Wanted, costs_of: Callable[[Sequence[Variant]], Costs], costs: dict[str, Cost | Unsupported]) -> None:
    asked = [variant for variant in wanted.stand_ins if variant.name not in costs]
    costs |= costs_of(asked) if asked else {}


def _best_fit(
    wanted: Wanted,
    memory: int,
    costs_of: Callable[[Sequence[Variant]], Costs],
    costs: dict[str, Cost | Unsupported],
    source: Source,
) -> tuple[Variant | None, str]:
    """The best type that runs within a memory, and the sum that says so; None and a sentence where none does."""
    _ask(wanted, costs_of, costs)
    sizes = {
        one: cost.file_bytes for one in (wanted.variant, *wanted.stand_ins) if isinstance(cost := costs[one.name], Cost)
    }
    if not sizes:
        return None, f"{wanted.preset}: {costs[wanted.variant.name]}"
    need = {one: memory_of(size, source) for one, size in sizes.items()}
    best = next((one for one in sizes if need[one] <= memory), None)
    if best is None:
        least = min(sizes, key=lambda one: sizes[one])
        return None, (
            f"Nothing fits {format_size(memory)}: {_sum(least, sizes[least], source)}, and that is the smallest type that "
            f"{wanted.preset} may be. Ask for more memory, or name a smaller type, such as IQ2_M."
        )
    larger = [one for one in sizes if need[one] > memory]
    beyond = f"; {larger[-1].name} would take {format_size(need[larger[-1]])}" if larger else ""
    return (
        best,
        f"{best.name} is the best type that fits {format_size(memory)}: {_sum(best, sizes[best], source)}{beyond}",
    )


def _sum(variant: Variant, size: int, source: Source) -> str:
    """The memory that a type takes, term by term."""
    cache = f"{format_size(cache_bytes(source))} for the cache of {context(source):,} tokens"
    terms = [f"files of {format_size(size)}", cache if cache_bytes(source) else "a cache of unknown size"]
    total = format_size(memory_of(size, source))
    return f"{variant.name} takes {', '.join(terms)} and {format_size(BUFFERS)} for the runtime, together {total}"
