"""Marks around the generated sections of a card, and merging: what a person wrote outside them stays.

    <!-- hubbot:begin files -->
    … generated …
    <!-- hubbot:end files -->

Generation replaces what stands between a pair of marks and leaves everything else alone, wherever a
person has moved the pair. A mark counts only when it is a whole line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from hubbot.cards.frontmatter import dump, join, split
from hubbot.errors import PublishConflict

__all__ = ["merge", "sections", "wrap"]

_MARK = re.compile(r"(?m)^[ \t]*<!-- hubbot:(begin|end) ([a-z-]{1,40}) -->[ \t]*\r?$\n?")


def wrap(parts: Mapping[str, str]) -> str:
    """The sections in order, each between its marks, with a line between them."""
    return "\n".join(_wrapped(name, text) for name, text in parts.items())


def _wrapped(name: str, text: str) -> str:
    return f"<!-- hubbot:begin {name} -->\n{text.strip(chr(10))}\n<!-- hubbot:end {name} -->\n"


def sections(body: str) -> dict[str, tuple[int, int]]:
    """Where every marked section stands: name -> start and end in `body`, marks included.

    Raises PublishConflict for marks that do not pair up: nobody could say what is generated.
    """
    found: dict[str, tuple[int, int]] = {}
    opened: re.Match[str] | None = None
    for mark in _MARK.finditer(body):
        kind, name = mark[1], mark[2]
        fits = (kind == "begin" and opened is None and name not in found) or (
            kind == "end" and opened is not None and opened[2] == name
        )
        if not fits:
            raise PublishConflict(_unpaired(kind, name, body.count("\n", 0, mark.start()) + 1))
        if kind == "begin":
            opened = mark
        elif opened is not None:
            found[name] = (opened.start(), mark.end())
            opened = None
    if opened is not None:
        raise PublishConflict(_unpaired("begin", opened[2], body.count("\n", 0, opened.start()) + 1))
    return found


def _unpaired(kind: str, name: str, row: int) -> str:
    return (
        f"The card that is on the Hub has a `hubbot:{kind} {name}` mark without its partner, in line {row} below the YAML "
        "head, so it is not clear which text is generated. Put the pair right there, or delete that README.md, and publish again."
    )


def merge(old: str | None, new: str) -> str:
    """The new card with everything that people wrote into the old one outside the marks.

    Sections keep the place that they have in the old card; sections that are new follow the one before
    them; sections that are no longer made go. A card without marks is a person's own: it is kept whole
    and the generated sections follow it. The YAML head is joined key by key.
    """
    if not old or not old.strip():
        return new
    old_head, old_body = split(old)
    new_head, new_body = split(new)
    return dump(join(old_head, new_head)) + _merge_bodies(old_body, new_body)


def _merge_bodies(old: str, new: str) -> str:
    there = sections(old)
    made = {name: new[start:end] for name, (start, end) in sections(new).items()}
    if not there:
        return f"{old.rstrip()}\n\n{new.lstrip(chr(10))}"
    follow = _followers(there, made)
    pieces = [f"{made[name]}\n" for name in follow.get(None, ())]
    position = 0
    for name, (start, end) in sorted(there.items(), key=lambda item: item[1]):
        pieces += [old[position:start], made.get(name, "")]
        pieces += [f"\n{made[after]}" for after in follow.get(name, ())]
        position = end
    return "".join([*pieces, old[position:]])


def _followers(there: Mapping[str, object], made: Mapping[str, object]) -> dict[str | None, list[str]]:
    """New sections, under the old section that they come after; None: before all others."""
    follow: dict[str | None, list[str]] = {}
    last: str | None = None
    for name in made:
        if name in there:
            last = name
        else:
            follow.setdefault(last, []).append(name)
    return follow
