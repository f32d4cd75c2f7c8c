"""The grammar of variant names, and the presets that stand for lists of them.

GGUF           the names that llama-quantize lists: Q4_K_M, IQ4_XS, Q8_0, BF16 (any case)
GPTQ           gptq-{2,3,4,8}bit-{16,32,64,128,256,-1}g[-actorder][-asym]
bitsandbytes   bnb-{nf4,fp4,int8}
"""

from __future__ import annotations

import difflib
import re
from typing import Literal, cast

from hubbot.domain import Bnb, Gguf, Gptq, Variant
from hubbot.errors import UnknownVariant

__all__ = ["GGUF_TYPES", "PRESETS", "parse_variant", "parse_variants"]

# llama-quantize's own list, less the types without a CPU encoder or made for one architecture only.
GGUF_TYPES = (
    "F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS "
    "Q3_K_L Q3_K_M Q3_K_S IQ3_M IQ3_S IQ3_XS IQ3_XXS Q2_K Q2_K_S IQ2_M IQ2_S IQ2_XS IQ2_XXS IQ1_M IQ1_S TQ1_0 TQ2_0"
).split()

_GGUF_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_GPTQ = re.compile(r"gptq-(2|3|4|8)bit-(16|32|64|128|256|-1)g(-actorder)?(-asym)?")
_BNB = ("bnb-nf4", "bnb-fp4", "bnb-int8")

PRESETS: dict[str, tuple[str, ...]] = {
    "default": ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "gptq-4bit-128g", "bnb-nf4"),
    "small": ("Q4_K_M", "gptq-4bit-128g", "bnb-nf4"),
    "gguf": ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"),
    "gguf-all": tuple(name for name in GGUF_TYPES if name not in ("F32", "TQ1_0", "TQ2_0")),
    "gptq": ("gptq-4bit-128g", "gptq-4bit-32g", "gptq-8bit-128g"),
    "bnb": ("bnb-nf4", "bnb-int8"),
}


def parse_variant(name: str) -> Variant:
    """The variant that a name stands for.

    Raises UnknownVariant with the nearest names for anything outside the grammar.
    """
    text = name.strip()
    upper = _GGUF_ALIASES.get(text.upper(), text.upper())
    if upper in GGUF_TYPES:
        return Gguf(type=upper)
    lower = text.lower()
    if match := _GPTQ.fullmatch(lower):
        bits, group, order, zeros = match.groups()
        return Gptq(
            bits=cast("Literal[2, 3, 4, 8]", int(bits)),
            group_size=int(group),
            act_order=order is not None,
            symmetric=zeros is None,
        )
    if lower in _BNB:
        return Bnb(kind=cast("Literal['nf4', 'fp4', 'int8']", lower.removeprefix("bnb-")))
    raise UnknownVariant(_unknown(text))


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
    known = [
        *GGUF_TYPES,
        *PRESETS,
        *_BNB,
        *(f"gptq-{b}bit-{g}g" for b in (2, 3, 4, 8) for g in (16, 32, 64, 128, 256, -1)),
    ]
    folded = {word.lower(): word for word in known}
    near = [folded[word] for word in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.4)]
    hint = f" Nearest: {', '.join(near)}." if near else ""
    return (
        f"{name!r} is no variant that hubbot knows.{hint} GGUF types are named as llama-quantize names them, "
        "GPTQ is gptq-<2|3|4|8>bit-<16|32|64|128|256|-1>g[-actorder][-asym], bitsandbytes is bnb-nf4, bnb-fp4 or bnb-int8."
    )
