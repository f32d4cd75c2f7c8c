"""Side by side: whatever differs can be seen, and nothing else is marked."""

from __future__ import annotations

import pytest

from hubbot.cards.sides import sides
from hubbot.domain import Sample


def both(base: str, variant: str, limit: int = 360) -> tuple[str, str] | None:
    found = sides(Sample(prompt="p", base=base, variant=variant, differs_at=1), limit=limit)
    return found and tuple("".join(f"[{text}]" if differs else text for text, differs in side) for side in found)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("base", "variant", "seen"),
    [
        ("\n    return 1", "\n  return 1", ("[␣␣]return 1", "return 1")),
        ("a b", "a  b", ("a[␣]b", "a[␣␣]b")),
        ("a\tb", "a b", ("a[⇥]b", "a[␣]b")),
        ("a", "a\n", ("a", "a[⏎\n]")),
        ("a\u00a0b", "a b", ("a[⟨U+00A0⟩]b", "a[␣]b")),
        (" one two", " one three", ("one [two]", "one [three]")),
    ],
)
def test_blanks_that_differ_show_themselves_and_words_are_marked(
    base: str, variant: str, seen: tuple[str, str]
) -> None:
    assert both(base, variant) == seen


def test_continuations_that_part_beyond_what_is_shown_are_not_marked() -> None:
    assert both("a" * 400 + "b", "a" * 400 + "c") is None
    assert both("same", "same") is None
