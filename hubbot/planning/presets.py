"""What the variants that are asked for come to for the model at hand. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hubbot.domain import Variant
from hubbot.errors import Unsupported, UnsupportedShape
from hubbot.formats.names import Wanted
from hubbot.formats.protocol import Cost

__all__ = ["Costs", "Resolution", "resolve"]

Costs = Mapping[str, Cost | Unsupported]  # variant -> its size, or why it cannot be made of this model


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    variants: tuple[Variant, ...]  # in the order asked for
    costs: Costs
    notes: tuple[str, ...]  # what stands in for what, and why


def resolve(wanted: Sequence[Wanted], costs_of: Callable[[Sequence[Variant]], Costs]) -> Resolution:
    """Every variant with its cost; of a preset, the one with the largest group size that divides the model's widths."""
    costs = dict(costs_of([one.variant for one in wanted]))
    chosen: dict[str, Variant] = {}
    notes = []
    for one in wanted:
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
    asked = [variant for variant in wanted.stand_ins if variant.name not in costs]
    costs |= costs_of(asked) if asked else {}
    return next((variant for variant in wanted.stand_ins if isinstance(costs[variant.name], Cost)), None)
