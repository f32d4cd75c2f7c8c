"""A run in short: terminal, step summary, pull request, review."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hubbot.cards import figures
from hubbot.cards.changes import Kind, changes, changes_table, conditions
from hubbot.cards.picture import Point
from hubbot.cards.summary import mermaid, pull_request, reasons, results_table, review, step_summary
from hubbot.domain import Divergence, Family, Record, Status, WindowMeans
from hubbot.release.repos import plan_repos
from hubbot.settings import PublishSettings
from tests.cards.test_escape import MARKDOWN, Seen
from tests.records import hostile_record, record, score, sha

LINKS = {"test-press/Testling-1B-GGUF": "https://huggingface.co/test-press/Testling-1B-GGUF/discussions/3"}


def printed(made: Record, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(results_table(made, width=width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 100, 130, 200])
def test_the_table_on_the_terminal_fits_and_cuts_no_number(width: int) -> None:
    text = printed(record(), width)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    for one in record().variants:
        assert one.name in text
    assert "✗ refused" in text
    assert "0.0388" in text


def test_reasons_of_all_that_did_not_pass_are_told() -> None:
    told = reasons(record())
    assert [line.split()[0] for line in told] == ["Q2_K", "gptq-2bit-64g", "bnb-fp4", "IQ1_S"]
    assert "above 1.5 nats" in told[0]


def test_hostile_text_cannot_steer_the_terminal() -> None:
    text = printed(hostile_record(), 130)
    assert "\x1b" not in text
    assert "\u202e" not in text


def summary(made: Record, **options: Any) -> str:
    return step_summary(made, pull_requests=LINKS, **options)


def test_the_step_summary_has_verdicts_numbers_picture_links_and_checklist() -> None:
    text = summary(record())
    assert "16 of 20 variants passed" in text
    assert "`Q2_K` **refused**: mean divergence" in text
    assert "| `Q4_K_M` | ✓ passed | 764.1 MB |" in text
    assert "\nquadrantChart\n" in text
    assert f"]({next(iter(LINKS.values()))})" in text
    assert text.count("- [ ] ") == 4


def test_without_pull_requests_there_is_nothing_to_check() -> None:
    assert "- [ ]" not in step_summary(record())


@pytest.mark.parametrize("limit", [200, 1_000, 3_000, 10_000, 1_000_000])
def test_the_step_summary_keeps_its_limit_and_says_what_is_missing(limit: int) -> None:
    text = summary(record(), limit=limit)
    assert len(text.encode()) <= limit
    assert ("did not fit" in text) == (limit < 5_000)


def test_a_run_of_two_thousand_variants_with_long_reasons_stays_under_a_mebibyte() -> None:
    made = record()
    refused = next(v for v in made.variants if v.status is Status.REFUSED)
    many = tuple(replace(refused, name=f"Q4_{i}", reason="é|<b>" * 10_000) for i in range(2_000))
    assert 10_000 < len(summary(replace(made, variants=many)).encode()) < 2**20


def test_a_hostile_summary_has_no_tag_or_link_of_its_own() -> None:
    page = MARKDOWN.render(summary(hostile_record()))
    assert set(Seen(page).tags) <= set(Seen(MARKDOWN.render(summary(record()))).tags)
    assert re.findall(r'href="([^"]*)"', page) == list(LINKS.values())
    hostile_link = step_summary(
        record(), pull_requests={"a/b": "javascript:alert(1)", "](x)": "https://e.example/) ![x](y"}
    )
    assert re.findall(r'href="([^"]*)"', MARKDOWN.render(hostile_link)) == ["https://e.example/%29%20%21%5Bx%5D%28y"]


@given(
    st.lists(
        st.tuples(st.text(max_size=20), st.integers(0, 10**13), st.floats(allow_nan=True, allow_infinity=True)),
        max_size=40,
    )
)
def test_the_mermaid_chart_is_always_sound(numbers: list[tuple[str, int, float]]) -> None:
    made = [Point(label=name, family=Family.GGUF, size=size, value=value) for name, size, value in numbers]
    text = mermaid(made)
    if text:
        lines = text.splitlines()
        assert (lines[0], lines[2]) == ("```mermaid", "quadrantChart")
        assert len(lines) > 7
        for line in lines[6:-1]:
            assert re.fullmatch(r'    "[A-Za-z0-9._-]+": \[0\.\d{3}, 0\.\d{3}\]', line)


# --- against an earlier release ---------------------------------------------------------------------


def earlier() -> Record:
    """A release before: Q8_0 the same, Q4_K_M worse, Q6_K better, no IQ4_XS, and a Q5_0 that is gone now."""
    made = record()
    by_name = {v.name: v for v in made.variants}

    def other(name: str, kld: float, new_name: str | None = None) -> Any:
        plain = by_name[name]
        files = tuple(replace(file, sha256=sha(f"{name} before")) for file in plain.files)
        return replace(plain, name=new_name or name, files=files, score=score(kld))

    variants = (by_name["Q8_0"], other("Q4_K_M", 0.05), other("Q6_K", 0.003), other("Q5_K_M", 0.02, "Q5_0"))
    return replace(
        made, variants=variants, tools={**made.tools, "llama.cpp": "b9000"}, config={**made.config, "gate": {}}
    )


def test_each_kind_of_change_is_told_apart() -> None:
    kinds = {change.name: change.kind for change in changes(earlier(), record())}
    assert kinds["Q8_0"] is Kind.SAME
    assert kinds["Q4_K_M"] is Kind.BETTER
    assert kinds["Q6_K"] is Kind.WORSE
    assert kinds["IQ4_XS"] is Kind.NEW
    assert kinds["Q5_0"] is Kind.GONE
    assert "Q2_K" not in kinds


def test_numbers_of_another_text_are_not_called_better_or_worse() -> None:
    old = earlier()
    assert old.evaluation is not None
    elsewhere = replace(old, evaluation=replace(old.evaluation, sha256=sha("other text")))
    kinds = {change.name: change.kind for change in changes(elsewhere, record())}
    assert kinds["Q4_K_M"] is kinds["Q6_K"] is Kind.CHANGED


def with_windows(made: Record, kld: dict[str, list[float]]) -> Record:
    variants = []
    for variant in made.variants:
        if variant.score and (found := kld.get(variant.name)):
            windows = WindowMeans(tokens=(9,) * len(found), kld=tuple(found), change=(0.0,) * len(found))
            mean = replace(variant.score.kld, mean=sum(found) / len(found))
            variant = replace(variant, score=replace(variant.score, kld=mean, windows=windows))
        variants.append(variant)
    return replace(made, variants=tuple(variants))


def test_a_change_is_worse_only_where_the_same_windows_say_so() -> None:
    hard = [0.01, 0.09] * 8
    old = with_windows(earlier(), {"Q4_K_M": hard, "Q6_K": hard})
    chance = [0.08, 0.05] * 8
    new = with_windows(record(), {"Q4_K_M": [kld + 0.002 for kld in hard], "Q6_K": chance})
    kinds = {change.name: change.kind for change in changes(old, new)}
    assert kinds["Q4_K_M"] is Kind.WORSE
    assert kinds["Q6_K"] is Kind.CHANGED


def test_a_divergence_that_is_not_finite_falls_back_to_perplexity() -> None:
    old, new = earlier(), record()
    nan = Divergence(mean=float("nan"), stderr=0, median=0, p99=0, max=0)

    def blind(made: Record) -> Record:
        return replace(
            made, variants=tuple(replace(v, score=v.score and replace(v.score, kld=nan)) for v in made.variants)
        )

    kinds = {change.name: change.kind for change in changes(blind(old), blind(new))}
    assert kinds["Q4_K_M"] is Kind.BETTER
    assert kinds["Q6_K"] is Kind.WORSE


def test_the_table_of_changes_shows_both_numbers_and_the_move() -> None:
    text = changes_table(changes(earlier(), record()))
    assert "| `Q4_K_M` | better | 764.1 MB | 11.3525 → 11.2784 (-0.65 %) | 0.0500 → 0.0388 (-22.40 %) |" in text
    assert "| `Q6_K` | **worse** |" in text
    assert "| `Q5_0` | **gone** |" in text


def test_what_else_differs_is_listed() -> None:
    assert conditions(record(), record()) == []
    assert conditions(earlier(), record()) == ["llama.cpp: `b9000` → `b9999`", "settings: `gate`"]


def test_a_pull_request_says_what_it_brings_and_what_changed() -> None:
    made = record()
    repo = plan_repos(made, PublishSettings(namespace="test-press"))[0]
    title, text = pull_request(made, repo, earlier())
    assert title == "Testling-1B at 0123456789ab: 9 variants"
    assert "### Since the last release" in text
    assert "`Q6_K` | **worse**" in text
    assert "`Q5_0` | **gone**" in text
    assert "gptq" not in text
    assert text.count("- [ ] ") == 4
    assert "](./" not in text
    _, first = pull_request(made, repo, None)
    assert "Since the last release" not in first


def test_a_hostile_pull_request_stays_text_and_short() -> None:
    made = hostile_record()
    repo = plan_repos(made, PublishSettings(namespace="test-press"))[0]
    title, text = pull_request(made, repo, hostile_record())
    assert "\n" not in title
    assert len(title) < 200
    assert len(text.encode()) <= 60_000
    assert not {"script", "img", "a"} & set(Seen(MARKDOWN.render(text)).tags)
    assert not re.search(r"(?<!\\)@\w", text)


def test_a_review_gives_verdicts_numbers_and_differences() -> None:
    text = review(record(), earlier())
    assert "- `Q2_K` ✗ refused: mean divergence" in text
    assert "**Worse than before: `Q6_K`.**" in text
    assert "llama.cpp: `b9000` → `b9999`" in text
    assert "no earlier release" in review(record(), None)


# --- figures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (807_700_000, "807.7 MB"),
        (4_920_000_000, "4.92 GB"),
        (999_949_999_999, "999.95 GB"),
        (10**12, "1.00 TB"),
        (10**16, "10000.00 TB"),
    ],
)
def test_sizes_are_decimal_as_on_the_hub(value: int, shown: str) -> None:
    assert figures.size(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.03881, "0.0388"), (1.913, "1.91"), (2e-5, "0.0000200"), (123.4, "123"), (-0.00123, "-0.00123")],
)
def test_divergences_have_three_digits_and_no_exponent(value: float, shown: str) -> None:
    assert figures.nats(value) == shown


@pytest.mark.parametrize(
    "shown", [figures.size, figures.nats, figures.percent, figures.ratio, figures.bits, figures.duration]
)
@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_was_not_measured_is_shown_by_nobody(shown: Any, value: float | None) -> None:
    assert shown(value) is None


@pytest.mark.parametrize(
    ("value", "shown"), [(0.4, "0.4 s"), (59.94, "59.9 s"), (61, "1 min 01 s"), (3_725, "1 h 02 min")]
)
def test_durations_read_as_people_say_them(value: float, shown: str) -> None:
    assert figures.duration(value) == shown


def test_a_column_without_a_number_is_left_out_and_one_without_some_keeps_a_dash() -> None:
    text = figures.table([("a", ":--"), ("b", "--:"), ("c", "--:")], [["x", None, None], ["y", "1", None]])
    assert text.splitlines() == ["| a | b |", "| :-- | --: |", "| x | – |", "| y | 1 |"]
    assert figures.table([("a", ":--")], []) == ""
