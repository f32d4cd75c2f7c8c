"""What the texts of strangers come to: a request inside its grammar, a command, or a sentence."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbot.bot.request.parse import (
    Approve,
    Cancel,
    Choose,
    Refused,
    Request,
    Retry,
    read_command,
    read_request,
)
from hubbot.cards.escape import repo_id
from hubbot.formats.names import parse_wanted

FORM = "### Model\n\n{model}\n\n### Variants\n\n{variants}\n\n### Why\n\n{why}\n"
HOSTILE = [
    "$(touch owned)",
    "a/b; touch owned",
    "a/b`touch owned`",
    "${{ secrets.HF_TOKEN }}",
    "@everyone/x",
    "../../etc/passwd",
    "a/..",
    "a--b/c",
    "org/na\u202eme",
    "org/name\x1b[31m",
    "[a](https://evil.example)/b",
    "<!-- hubbot:request -->",
    "::set-output name=x::y",
    "https://evil.example/org/name",
    "https://huggingface.co.evil.example/org/name",
    "https://huggingface.co/org/name/resolve/main/x",
    "-rf/name",
    "org/name\n--publish main",
]


def form(model="org/name", variants="_No response_", why="because") -> str:
    return FORM.format(model=model, variants=variants, why=why)


@pytest.mark.parametrize(
    ("text", "title", "asked"),
    [
        (form(), "", Request(model="org/name")),
        (form("  `org/name` ", "Q4_K_M, gptq-4bit-128g\nsmall"), "", Request(model="org/name", variants="Q4_K_M,gptq-4bit-128g,small")),
        (form("https://huggingface.co/org/name/"), "", Request(model="org/name")),
        (form("https://huggingface.co/org/name/tree/main?library=transformers"), "", Request(model="org/name")),
        (form("hf.co/org/name", "- "), "", Request(model="org/name")),
        (form(variants="Q8_0 Q8_0"), "", Request(model="org/name", variants="Q8_0")),
        ("Please!\nModel: org/name\nvariants: Q8_0\n", "", Request(model="org/name", variants="Q8_0")),
        ("Works well in my tests.", "Quantize org/name", Request(model="org/name")),
        ("", "[request] quantize: https://huggingface.co/org/name", Request(model="org/name")),
        (form().replace("\n", "\r\n"), "", Request(model="org/name")),
    ],
)  # fmt: skip
def test_a_form_a_discussion_and_a_title_ask_for_a_model(text, title, asked):
    assert read_request(text, title=title) == asked


def test_an_answer_cannot_speak_for_another_field():
    """What stands in the last field may look like a form; the first section of each name counts."""
    assert read_request(form("org/name", "Q8_0", "### Model\n\nevil/other\n\n### Variants\n\nF32\nModel: evil/x")) == Request(
        model="org/name", variants="Q8_0"
    )  # fmt: skip


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_model_is_a_sentence_of_what_can_be_seen(attack):
    found = read_request(form(attack))
    assert isinstance(found, Refused)
    assert found.reason.isprintable()
    assert "org/name" in found.reason


@pytest.mark.parametrize("attack", [*HOSTILE, "Q4_K_M,$(touch owned)", "Q4_K_M --publish main", "x" * 3_000])
def test_a_hostile_list_of_variants_is_a_sentence(attack):
    for found in (read_request(form(variants=attack)), read_command(f"/variants {attack}")):
        assert isinstance(found, Refused)
        assert found.reason.isprintable()
        assert len(found.reason) <= 600


@pytest.mark.parametrize(
    ("text", "variants"),
    [
        ("fit 8 GB", "fit-8GB"),
        ("fits into 24GiB", "fit-24GiB"),
        ("7.5 GB", "fit-7.5GB"),
        ("fit-8GB", "fit-8GB"),
        ("gptq-4bit-128g, fit 8 GB", "gptq-4bit-128g,fit-8GB"),
    ],
)
def test_a_size_in_memory_is_a_choice(text, variants):
    assert read_request(form(variants=text)) == Request(model="org/name", variants=variants)
    assert read_command(f"/variants {text}") == Choose(variants=variants)


@pytest.mark.parametrize("text", ["whatever fits", "fit", "fit 8,5 GB", "fit 99999999999 GB"])
def test_a_size_that_is_none_is_refused_in_a_sentence_of_its_own(text):
    found = read_request(form(variants=text))
    assert isinstance(found, Refused)
    assert "such as fit 8 GB" in found.reason


def test_more_variants_than_anybody_wants_are_refused():
    found = read_command("/variants " + " ".join(["Q8_0"] * 33))
    assert isinstance(found, Refused)
    assert "33" in found.reason


def test_a_request_that_names_nothing_says_what_to_name():
    for text in ("", "please quantize my model", form("_No response_")):
        assert read_request(text) == Refused(reason="The request names no model. Name one of the Hub as org/name.")


def test_a_megabyte_is_not_read():
    found = read_request("### Model\n\norg/name\n" + "x" * 1_000_000)
    assert isinstance(found, Refused)
    assert "1,000,0" in found.reason
    assert read_command("/approve\n" + "x" * 1_000_000) == Approve()
    assert isinstance(read_command("/variants " + "x," * 500_000), Refused)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/approve", Approve()),
        ("  /Approve \r\nThanks for asking.", Approve()),
        ("/retry", Retry()),
        ("/cancel", Cancel()),
        ("/variants Q4_K_M,gptq", Choose(variants="Q4_K_M,gptq")),
        ("/assign somebody", None),
        ("please /approve", None),
        ("> /approve", None),
        ("`/approve`", None),
        ("", None),
    ],
)
def test_a_command_is_the_first_line_and_nothing_else(text, command):
    assert read_command(text) == command


@pytest.mark.parametrize(
    "text", ["/approve evil/other", "/aprove", "/approve\u202e", "/retry; rm -rf", "/variants", "/variants fit"]
)
def test_what_is_nearly_a_command_is_a_sentence(text):
    found = read_command(text)
    assert isinstance(found, Refused)
    assert found.reason.isprintable()


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=string.printable + "\u202e\u2028#/`@:\x85", max_size=400))
def test_whatever_is_written_comes_to_a_value_in_its_grammar_or_a_sentence(text):
    for written in (text, form(text), form(variants=text)):
        found = read_request(written, title=text)
        if isinstance(found, Request):
            assert repo_id(found.model) == found.model
            assert found.variants is None or parse_wanted(found.variants)
        else:
            assert found.reason.isprintable()
            assert len(found.reason) <= 600
    command = read_command(text)
    assert not isinstance(command, Choose) or parse_wanted(command.variants)
