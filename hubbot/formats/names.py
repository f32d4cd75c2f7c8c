"""The names of variants, each family's by its own grammar, and the presets that stand for lists of them."""

from __future__ import annotations

import difflib

from hubbot.domain import Variant
from hubbot.errors import UnknownVariant
from hubbot.formats import FAMILIES, gguf

__all__ = ["PRESETS", "find_variant", "parse_variant", "parse_variants"]

PRESETS: dict[str, tuple[str, ...]] = {
    "default": ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "gptq-4bit-128g", "bnb-nf4"),
    "small": ("Q4_K_M", "gptq-4bit-128g", "bnb-nf4"),
    "gguf": ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"),
    "gguf-all": tuple(name for name in gguf.TYPES if name not in ("F32", "TQ1_0", "TQ2_0")),
    "gptq": ("gptq-4bit-128g", "gptq-4bit-32g", "gptq-8bit-128g"),
    "bnb": ("bnb-nf4", "bnb-int8"),
}


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
    names: dict[str, Variant] = {}
    for word in (part.strip() for part in text.split(",")):
        if not word:
            continue
        for name in PRESETS.get(word.lower(), (word,)):
            variant = parse_variant(name)
            names.setdefault(variant.name, variant)
    if not names:
        msg = f"No variant is named in {text!r}. Give a comma list such as Q4_K_M,gptq-4bit-128g or a preset: {', '.join(PRESETS)}."
        raise UnknownVariant(msg)
    return tuple(names.values())


def _unknown(name: str) -> str:
    known = [*PRESETS, *(example for family in FAMILIES.values() for example in family.ABOUT.examples)]
    folded = {word.lower(): word for word in known}
    near = [folded[word] for word in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.4)]
    hint = f" Nearest: {', '.join(near)}." if near else ""
    grammars = ", ".join(f"{family.ABOUT.title} {family.ABOUT.grammar}" for family in FAMILIES.values())
    return f"{name!r} is no variant that hubbot knows.{hint} {grammars}."
