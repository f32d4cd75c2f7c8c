"""Merging: what a person wrote outside the marks survives every regeneration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbot.cards.frontmatter import dump, split
from hubbot.cards.marks import merge, sections, wrap
from hubbot.errors import PublishConflict

HEAD = {"base_model": "a/b", "license": "mit", "tags": ["gguf", "hubbot"], "model-index": [{"name": "x"}]}


def card(yaml: dict[str, object] | None = None, /, **parts: str) -> str:
    return f"{dump(yaml or HEAD)}\n{wrap(parts or {'head': 'Title', 'files': 'Table'})}"


def test_an_unchanged_card_merges_into_itself() -> None:
    assert merge(card(), card()) == card()
    assert merge(None, card()) == merge("", card()) == merge(" \n", card()) == card()


def test_words_before_between_and_after_the_sections_stay() -> None:
    old = card().replace("<!-- hubbot:begin head", "BEFORE\n\n<!-- hubbot:begin head", 1)
    old = old.replace("<!-- hubbot:begin files", "BETWEEN\n\n<!-- hubbot:begin files", 1) + "\nAFTER\n"
    new = merge(old, card(head="New title", files="New table"))
    assert [word for word in new.split() if word.isupper()] == ["BEFORE", "BETWEEN", "AFTER"]
    assert "New title" in new
    assert "\nTable" not in new
    assert (
        new.index("BEFORE")
        < new.index("New title")
        < new.index("BETWEEN")
        < new.index("New table")
        < new.index("AFTER")
    )


def test_sections_that_a_person_moved_stay_where_they_are() -> None:
    old = f"{dump(HEAD)}\n{wrap({'files': 'F', 'head': 'H'})}"
    new = merge(old, card(head="H2", files="F2"))
    assert new.index("F2") < new.index("H2")


def test_text_edited_inside_the_marks_is_made_anew() -> None:
    assert "EDITED" not in merge(card(head="EDITED", files="Table"), card())


def test_a_new_section_follows_the_one_before_it_and_an_old_one_goes() -> None:
    old = card(head="H", gone="G", files="F") + "\nmine\n"
    new = merge(old, card(head="H", picture="P", files="F"))
    assert list(sections(split(new)[1])) == ["head", "picture", "files"]
    assert new.endswith("mine\n")
    assert list(sections(split(merge(card(files="F"), card(head="H", files="F")))[1])) == ["head", "files"]


def test_a_card_without_marks_is_kept_whole_above_the_sections() -> None:
    new = merge("---\nlicense: mit\nwidget: [1]\n---\n# Mine\n\nWords.\n", card())
    head, body = split(new)
    assert body.startswith("# Mine\n\nWords.\n")
    assert list(sections(body)) == ["head", "files"]
    assert head["widget"] == [1]


def test_keys_that_people_added_to_the_head_stay_and_ours_are_made_anew() -> None:
    old = card({**HEAD, "license": "gpl", "thumbnail": "x.png", "tags": ["gguf", "mine"]})
    head, _ = split(merge(old, card({"license": "mit", "tags": ["gguf", "new"]})))
    assert head == {"license": "mit", "tags": ["gguf", "new", "mine"], "thumbnail": "x.png"}


@pytest.mark.parametrize(
    "body",
    [
        "<!-- hubbot:begin a -->",
        "<!-- hubbot:end a -->",
        "<!-- hubbot:begin a -->\n<!-- hubbot:begin b -->\n<!-- hubbot:end b -->\n<!-- hubbot:end a -->",
        "<!-- hubbot:begin a -->\n<!-- hubbot:end b -->",
        "<!-- hubbot:begin a -->\n<!-- hubbot:end a -->\n<!-- hubbot:begin a -->\n<!-- hubbot:end a -->",
    ],
)
def test_marks_that_do_not_pair_up_are_refused_and_nothing_is_guessed(body: str) -> None:
    with pytest.raises(PublishConflict, match="without its partner"):
        merge(f"{dump(HEAD)}\nmine\n{body}\n", card())


@pytest.mark.parametrize("head", ["- a list", "a: [", "key: *missing", "x" * 300_000 + ": 1", "'" + "[" * 5_000])
def test_a_head_that_cannot_be_read_is_refused_and_not_thrown_away(head: str) -> None:
    with pytest.raises(PublishConflict, match="YAML head"):
        merge(f"---\n{head}\n---\nmine\n", card())


def test_a_mark_inside_a_line_is_text() -> None:
    assert sections("see `<!-- hubbot:begin a -->` there\n") == {}


OUTSIDE = st.text("ab <!-#>\n", max_size=40).map(lambda text: f"\n{text}\n")


@given(OUTSIDE, OUTSIDE, OUTSIDE)
def test_any_text_outside_survives_any_number_of_regenerations(before: str, between: str, after: str) -> None:
    first, second = wrap({"head": "one"}), wrap({"files": "two"})
    old = f"{dump(HEAD)}{before}{first}{between}{second}{after}"
    fresh = card(head="three", files="four")
    new = merge(merge(old, fresh), fresh)
    body = split(new)[1]
    assert body == f"{before}{wrap({'head': 'three'})}{between}{wrap({'files': 'four'})}{after}"


def test_windows_line_ends_are_understood() -> None:
    old = (card() + "\nmine\n").replace("\n", "\r\n")
    new = merge(old, card(head="N", files="T"))
    assert "mine" in new
    assert new.count("hubbot:begin head") == 1
