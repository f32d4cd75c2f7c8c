"""The names of variants, each family's by its own grammar, and the presets that stand for lists of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from hubbot.domain import Gguf, Gptq, Packed, Variant
from hubbot.errors import UnknownVariant
from hubbot.formats import FAMILIES, gguf
from hubbot.settings.sections import parse_size

__all__ = [
    "PRESETS",
    "Wanted",
    "find_variant",
    "fits_memory",
    "names_made",
    "parse_variant",
    "parse_variants",
    "parse_wanted",
    "stand_ins",
]

PRESETS: dict[str, tuple[str, ...]] = {
    "default": ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "gptq-4bit-128g", "bnb-nf4"),
    "small": ("Q4_K_M", "gptq-4bit-128g", "bnb-nf4"),
    "gguf": ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"),
    "gguf-all": tuple(name for name in gguf.TYPES if name not in ("F32", "MXFP4_MOE", "TQ1_0", "TQ2_0")),
    "gptq": ("gptq-4bit-128g", "gptq-4bit-32g", "gptq-8bit-128g"),
    "vllm": ("w4a16-128g", "w8a16-128g"),
    "bnb": ("bnb-nf4", "bnb-int8"),
}
_FIT = re.compile(r"fit-([0-9]{1,6}(?:\.[0-9]{1,3})?[MGT]i?B)(_D)?", re.IGNORECASE)
_GROUPS = (128, 64, 32, 16)  # that a preset's variant may fall back to, the largest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A variant that is asked for. Of a preset it is an intention: another group size may stand in for it.

    With a memory (`fit-8GB`) it is the largest of the types of the preset `gguf`, and those that fit stand in for it;
    `fit-8GB_D` has the mixes with measured types in their place.
    """

    variant: Variant
    preset: str | None  # None: it was named in full
    memory: int | None = None  # bytes that it has to fit when it runs
    measured: bool = False  # whether its mixes get their types by measured divergence

    @property
    def stand_ins(self) -> tuple[Variant, ...]:
        """What may be made in its place, the best first."""
        if self.memory is not None:
            return (_MEASURED if self.measured else _BY_SIZE)[1:]
        return stand_ins(self.variant) if self.preset else ()


def stand_ins(variant: Variant) -> tuple[Variant, ...]:
    """The same variant with smaller groups, the largest first."""
    if isinstance(variant, Packed):
        layouts = (
            replace(variant.layout, group_size=size) for size in _GROUPS if 16 < size < variant.layout.group_size
        )
        return tuple(Packed(layout=layout) for layout in layouts)
    if not isinstance(variant, Gptq):
        return ()
    return tuple(replace(variant, group_size=size) for size in _GROUPS if size < variant.group_size)


_BY_SIZE = tuple(Gguf(type=name) for name in reversed(PRESETS["gguf"]))
_MEASURED = (Gguf(type="Q8_0"), Gguf(type="Q6_K"), *(Gguf(type=name, allocated=True) for name in gguf.ALLOCATED))


def find_variant(name: str) -> Variant | None:
    """The variant that a name stands for, in any case; None outside every family's grammar."""
    found = (family.parse(name) for family in FAMILIES.values())
    return next((variant for variant in found if variant is not None), None)


def parse_variant(name: str) -> Variant:
    """The variant that a name stands for.

    Raises UnknownVariant with the nearest names for anything outside the grammar.
    """
    variant = find_variant(name.strip())
    if variant is None:
        raise UnknownVariant(_unknown(name.strip()))
    return variant


def parse_variants(text: str) -> tuple[Variant, ...]:
    """A comma list of variant and preset names, each variant once, in the order given."""
    return tuple({wanted.variant.name: wanted.variant for wanted in parse_wanted(text)}.values())


def fits_memory(text: str) -> bool:
    """Whether a comma list asks for what fits a memory, so that its plan alone knows the variants."""
    return any(wanted.memory is not None for wanted in parse_wanted(text))


def parse_wanted(text: str) -> tuple[Wanted, ...]:
    """As `parse_variants`, with the preset that each comes from; who names a variant in full means that one.

    What is to fit a memory comes last.
    """
    found: dict[str, Wanted] = {}
    fits: dict[str, Wanted] = {}
    for word in (part.strip() for part in text.split(",")):
        if fit := _FIT.fullmatch(word):
            memory = int(str(parse_size(fit[1])))
            fits[word.lower()] = Wanted(variant=_BY_SIZE[0], preset=word, memory=memory, measured=bool(fit[2]))
            continue
        preset = word.lower() if word.lower() in PRESETS else None
        for name in PRESETS[preset] if preset else (word,) if word else ():
            variant = parse_variant(name)
            if preset is None or variant.name not in found:
                found[variant.name] = Wanted(variant=variant, preset=preset)
    if not found and not fits:
        msg = f"No variant is named in {text!r}. Give a comma list such as Q4_K_M,gptq-4bit-128g or a preset: {', '.join(PRESETS)}."
        raise UnknownVariant(msg)
    return (*found.values(), *fits.values())


def names_made(text: str, made: Collection[str]) -> list[str]:
    """The names that a comma list comes to, where a release holds `made`: what stands in for a preset's variant counts for it."""
    names: list[str] = []
    for wanted in parse_wanted(text):
        name = wanted.variant.name
        if wanted.memory is not None:
            there = [one.name for one in (wanted.variant, *wanted.stand_ins) if one.name in made]
            names += [other for other in there if other not in names][:1] or ([] if names else [name])
            continue
        other = next((one.name for one in wanted.stand_ins if one.name in made), None)
        names.append(name if name in made or other is None else other)
    return list(dict.fromkeys(names))


def _unknown(name: str) -> str:
    known = [*PRESETS, "fit-8GB", *(example for family in FAMILIES.values() for example in family.ABOUT.examples)]
    folded = {word.lower(): word for word in known}
    near = [folded[word] for word in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.4)]
    hint = f" Nearest: {', '.join(near)}." if near else ""
    grammars = ", ".join(f"{family.ABOUT.title} {family.ABOUT.grammar}" for family in FAMILIES.values())
    return f"{name!r} is no variant that hubbot knows.{hint} {grammars}."
