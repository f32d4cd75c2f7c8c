"""How much a tokenizer's normalizer makes of a text, from tokenizer.json alone, before any library runs it.

A few lines of JSON that double a letter forty times ask for a terabyte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hubbot.errors import UnsafeSource

__all__ = ["check_growth"]

_MOST = 1_024  # times its length; honest ones stay below twenty
_UNTOLD = {"ByteLevel": 4, "Precompiled": 8}  # steps that do not say what they put in the place of a character


def check_growth(tokenizer: Mapping[str, Any]) -> None:
    """Refuse a normalizer that may make more than `_MOST` characters of one. Raises UnsafeSource."""
    growth = 1
    for step in _steps(tokenizer.get("normalizer")):
        growth *= _factor(step)
        if growth > _MOST:
            msg = (
                f"The normalizer of tokenizer.json may make over {_MOST:,} characters of one, by replacing and prepending again "
                "and again. No honest tokenizer does; take those steps out in a copy of the model."
            )
            raise UnsafeSource(msg)


def _steps(found: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer, those of sequences in sequences too; JSON from outside is not nested deeply."""
    if not isinstance(found, dict):
        return
    inside = found.get("normalizers")
    if isinstance(inside, list):
        for step in inside:
            yield from _steps(step)
    else:
        yield found


def _factor(step: Mapping[str, Any]) -> int:
    """How many characters a step may put in the place of one."""
    if isinstance(prefix := step.get("prepend"), str):
        return 1 + len(prefix)
    if (known := _UNTOLD.get(str(step.get("type")))) is not None:
        return known
    content, pattern = step.get("content"), step.get("pattern")
    if not isinstance(content, str) or not isinstance(pattern, dict):
        return 1
    literal = pattern.get("String")
    if isinstance(literal, str) and literal:
        return max(1, -(-len(content) // len(literal)))
    return 1 + len(content)  # a pattern that may match nothing stands between all characters
