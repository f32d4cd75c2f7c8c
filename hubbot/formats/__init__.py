"""The families of formats: one folder each, and a row of the table below."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hubbot.domain import Family, Source, TextRecord, Variant
from hubbot.errors import Unsupported
from hubbot.formats import bnb, gguf, gptq, packed
from hubbot.formats.family import FamilyModule
from hubbot.formats.protocol import Cost, Format, Needs
from hubbot.settings import Settings

if TYPE_CHECKING:
    from hubbot.model import ModelFacts
    from hubbot.model.finite import Large

__all__ = [
    "FAMILIES",
    "calibration_needs",
    "costs_of",
    "open_formats",
    "overflows_of",
    "put_in_place",
    "weighed_by_gradients",
]

FAMILIES: dict[Family, FamilyModule[Any]] = {
    Family.GGUF: gguf,
    Family.GPTQ: gptq,
    Family.PACKED: packed,
    Family.BNB: bnb,
}


class _Told(Protocol):
    @property
    def family(self) -> Family: ...

    @property
    def name(self) -> str: ...


def calibration_needs(variants: Iterable[_Told], config: Mapping[str, Any]) -> Needs:
    """The most that any of the variants wants to know from the calibration.

    config: the settings, as `Record.config` has them.
    """
    names: dict[Family, list[str]] = {}
    for variant in variants:
        names.setdefault(variant.family, []).append(variant.name)

    def needs(family: Family) -> Needs:
        section = config.get(FAMILIES[family].ABOUT.section or "")
        return FAMILIES[family].needs(section if isinstance(section, Mapping) else {}, names[family])

    return max(map(needs, names), key=lambda wanted: wanted.value, default=Needs.NOTHING)


def weighed_by_gradients(variants: Sequence[Variant], config: Mapping[str, Any]) -> list[Variant]:
    """Those that a pass forth and back is made for. config: as `calibration_needs` takes it."""
    return [variant for variant in variants if calibration_needs([variant], config) is Needs.GRADIENTS]


def costs_of(
    variants: Sequence[Variant], source: Source, facts: ModelFacts, work: Path, settings: Settings
) -> dict[str, Cost | Unsupported]:
    """Variant name -> exact size, or why its family cannot make it of this model; in the order given."""
    found: dict[str, Cost | Unsupported] = {}
    for family, mine in _by_family(variants).items():
        if refusal := FAMILIES[family].refusal(facts.architecture):
            found |= {variant.name: Unsupported(refusal) for variant in mine}
            continue
        try:
            found |= FAMILIES[family].costs(mine, source=source, facts=facts, work=work, settings=settings)
        except Unsupported as error:
            found |= {variant.name: error for variant in mine}
    return {variant.name: found[variant.name] for variant in variants}


def overflows_of(
    variants: Sequence[Variant],
    source: Source,
    facts: ModelFacts,
    work: Path,
    settings: Settings,
    large: Mapping[str, Large],
) -> dict[str, str]:
    """Variant name -> why it cannot hold the weights that are beyond float16, seen before anything is encoded."""
    found: dict[str, str] = {}
    for family, mine in (_by_family(variants) if large else {}).items():
        found |= FAMILIES[family].overflows(mine, source=source, facts=facts, work=work, settings=settings, large=large)
    return found


def open_formats(
    *,
    variants: Sequence[Variant],
    source: Source,
    facts: ModelFacts,
    work: Path,
    out: Path,
    settings: Settings,
    calibration: TextRecord | None,
    decoded: bool,
    device: str,
) -> list[Format]:
    """The encoders of some variants, ready for the first part: one a family, and one for those of it that want gradients,
    so that what a pass back fails at costs the others nothing.

    calibration: the text that the importance matrix comes from. decoded: whether decoded weights are wanted.
    device: where the sweep computes, as torch names it; families encode there what gives the same bytes.
    Raises Unsupported and UnsupportedShape where a family cannot make a variant.
    """
    return [
        FAMILIES[family].open_format(
            mine,
            beside=[variant for variant in variants if variant not in mine],
            source=source,
            facts=facts,
            work=work,
            out=out,
            settings=settings,
            calibration=calibration,
            decoded=decoded,
            device=device,
        )
        for family, whole in _by_family(variants).items()
        for mine in _by_gradients(whole, settings)
    ]


def put_in_place(work: Path, out: Path) -> list[Path]:
    """The files under `out` that a killed sweep, which made them in `work`, has put under their final names."""
    finished = [path for family in FAMILIES.values() for path in family.finished(work, out)]
    files = [file for path in finished for file in (path, *path.rglob("*"))]
    return [path for path in files if path.is_file() and not path.is_symlink()]


def _by_family(variants: Sequence[Variant]) -> dict[Family, list[Variant]]:
    mine = {family: [variant for variant in variants if variant.family is family] for family in FAMILIES}
    return {family: chosen for family, chosen in mine.items() if chosen}


def _by_gradients(variants: Sequence[Variant], settings: Settings) -> Iterator[list[Variant]]:
    """Those that want none, and those that do."""
    weighed = weighed_by_gradients(variants, settings.model_dump(mode="json"))
    yield from filter(None, ([variant for variant in variants if variant not in weighed], weighed))
