"""Two continuations side by side: what of each differs, in cards and reports by the same rule. Pure.

Words that differ are marked. Blanks that differ show themselves, since nobody would see them otherwise.
"""

from __future__ import annotations

import difflib
import re
from typing import TypeAlias

from hubbot.cards.escape import clean
from hubbot.domain import Sample

__all__ = ["Pieces", "parts", "sides"]

Pieces: TypeAlias = list[tuple[str, bool]]  # (text, differs)

_SHOWN = {" ": "␣", "\t": "⇥", "\n": "⏎\n"}


def sides(sample: Sample, *, limit: int) -> tuple[Pieces, Pieces] | None:
    """The pieces of the original's and of the variant's continuation; None when what is shown of them is the same.

    Blanks that both have at their ends are left out; each is cut to `limit` characters.
    """
    base, variant = _trimmed(clean(sample.base, limit=limit), clean(sample.variant, limit=limit))
    left, right = parts(base, variant)
    if not any(differs for _, differs in left + right):
        return None
    return [_seen(*piece) for piece in left], [_seen(*piece) for piece in right]


def parts(base: str, variant: str) -> tuple[Pieces, Pieces]:
    """Both texts cut into (text, differs) pieces at words; the pieces of each make up its text."""
    one, two = re.findall(r"\s+|\w+|[^\w\s]", base), re.findall(r"\s+|\w+|[^\w\s]", variant)
    left: Pieces = []
    right: Pieces = []
    for tag, start, end, first, last in difflib.SequenceMatcher(a=one, b=two, autojunk=False).get_opcodes():
        if end > start:
            left.append(("".join(one[start:end]), tag != "equal"))
        if last > first:
            right.append(("".join(two[first:last]), tag != "equal"))
    return left, right


def _trimmed(one: str, two: str) -> tuple[str, str]:
    """Without the blanks that both have at the start and at the end."""
    while one and two and one[0] == two[0] and one[0].isspace():
        one, two = one[1:], two[1:]
    while one and two and one[-1] == two[-1] and one[-1].isspace():
        one, two = one[:-1], two[:-1]
    return one, two


def _seen(text: str, differs: bool) -> tuple[str, bool]:
    if not differs or not text.isspace():
        return text, differs
    return "".join(_SHOWN.get(char, f"⟨U+{ord(char):04X}⟩") for char in text), differs
