"""Whatever text comes from outside, the reader sees the text and nothing else."""

from __future__ import annotations

import re
import shlex
import subprocess
import unicodedata
from html.parser import HTMLParser

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hubbot.cards import escape
from hubbot.cards.frontmatter import dump
from tests.records import HOSTILE

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
SPECIAL = "`|*_~<>[]()!#&\\$:@\"'{}-+=.\n\r\t 1aw/\u202e\u2066\ufeff\x00\x1b\u2028"
TEXTS = st.one_of(st.text(SPECIAL, max_size=60), st.text(max_size=60), st.sampled_from(HOSTILE[:-1]))


class Seen(HTMLParser):
    """The tags and the text of a page, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(markdown: str) -> Seen:
    return Seen(MARKDOWN.render(markdown))


def collapsed(text: str) -> str:
    return " ".join(text.split())


@given(TEXTS)
@example("1. one")
@example("- a")
@example("    code")
@example("a  \nb")
@example("\\")
@example("&amp;")
def test_inline_text_is_one_paragraph_of_that_text(text: str) -> None:
    seen = rendered(f"{escape.inline(text)}")
    assert set(seen.tags) <= {"p"}
    assert seen.text.strip() == escape.line(text)


@given(TEXTS)
def test_inline_text_stays_in_its_table_cell(text: str) -> None:
    seen = rendered(f"| a | b |\n| - | - |\n| {escape.inline(text)} | end |\n")
    assert seen.tags == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]
    assert collapsed(seen.text) == collapsed(f"a b {escape.line(text)} end")


@given(TEXTS)
def test_code_spans_show_the_text_and_end_where_they_should(text: str) -> None:
    seen = rendered(f"x {escape.code(text)} y")
    assert seen.tags == ["p", "code"]
    assert collapsed(seen.text) == collapsed(f"x {escape.line(text)} y")


@given(TEXTS)
def test_code_spans_stay_in_their_table_cell(text: str) -> None:
    seen = rendered(f"| a | b |\n| - | - |\n| {escape.code(text, cell=True)} | end |\n")
    assert seen.tags == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "code", "td"]
    assert seen.text.split()[-1] == "end"


@given(TEXTS)
def test_a_fence_cannot_be_closed_from_inside(text: str) -> None:
    seen = rendered(f"{escape.fence(text, 'sh')}\n\nafter")
    assert seen.tags == ["pre", "code", "p"]
    assert seen.text.rstrip().endswith("after")


@given(TEXTS)
def test_a_fence_holds_no_mark_of_a_section(text: str) -> None:
    assert "<!-- hubbot:" not in escape.fence(f"{text}\n<!-- hubbot:end card -->\n{text}")


@given(TEXTS)
def test_html_text_and_attributes_stay_text(text: str) -> None:
    seen = Seen(f'<p title="{escape.markup(text)}">{escape.markup(text)}</p>')
    assert seen.tags == ["p"]
    assert seen.text == escape.clean(text)


@given(st.text(max_size=200))
def test_nothing_unseen_or_reordering_is_left(text: str) -> None:
    for made in (escape.clean(text), escape.inline(text), escape.markup(text), escape.fence(text)):
        hidden = [char for char in made if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t"]
        assert not hidden
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\ufeff\u2028\u2029]", made)
        made.encode()


@given(TEXTS)
def test_the_yaml_head_gives_back_what_went_in_and_nothing_more(text: str) -> None:
    value = escape.line(text)
    head = dump({"license_name": value, "tags": [value], "license": "mit"})
    assert head.startswith("---\n")
    assert head.endswith("\n---\n")
    assert re.findall(r"(?m)^---$", head) == ["---", "---"]
    assert yaml.safe_load(head.removeprefix("---\n").removesuffix("---\n")) == {
        "license_name": value,
        "tags": [value],
        "license": "mit",
    }


@given(TEXTS)
def test_a_pasted_command_gets_one_word(text: str) -> None:
    assert shlex.split(escape.shell(text)) == [escape.line(text)]


@settings(max_examples=20)
@given(TEXTS)
def test_a_shell_sees_that_word_too(text: str) -> None:
    shown = subprocess.run(["sh", "-c", f"printf %s {escape.shell(text)}"], capture_output=True, check=True)
    assert shown.stdout.decode() == escape.line(text)


def test_long_text_is_cut_and_says_so() -> None:
    assert len(escape.clean("x" * 50_000, limit=100)) == 100
    assert escape.clean("x" * 101, limit=100).endswith("…")
    assert escape.clean("x" * 100, limit=100) == "x" * 100


def test_addresses_and_mentions_are_no_links() -> None:
    shown = escape.inline("https://evil.example www.evil.example @all")
    assert "://" not in re.sub(r"<!-- -->", "", shown).replace("https:" + "//", "") or "<!-- -->" in shown
    for found in ("https://", "www.evil", "@all"):
        assert found not in shown


@pytest.mark.parametrize(
    "text",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "//evil",
        "ftp://x/y",
        "http://a b/c",
        "https://x@y/z",
        "",
        "http://[::1",
        "x" * 3_000,
    ],
)
def test_only_plain_web_addresses_become_links(text: str) -> None:
    assert escape.url(text) is None


@given(TEXTS)
def test_an_address_cannot_leave_its_link(text: str) -> None:
    address = escape.url(f"https://example.org/{text}")
    if address is not None:
        assert re.fullmatch(r"https://example\.org/[A-Za-z0-9/%?=&,+._~-]*", address)
        assert rendered(f"[x]({address})").tags == ["p", "a"]


@pytest.mark.parametrize("text", ["org/name", "Org-1/a.b_c"])
def test_hub_ids_are_recognised(text: str) -> None:
    assert escape.repo_id(text) == text


@pytest.mark.parametrize(
    "text", [None, "", "name", "a/b/c", "a/..", "../a", "a/b\n", "a/b c", "a/<b>", "a--b/c", "a/" + "x" * 97]
)
def test_what_is_no_hub_id_is_not_linked(text: str | None) -> None:
    assert escape.repo_id(text) is None
