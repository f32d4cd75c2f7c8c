"""The picture: sound SVG, labels that do not overlap, nothing of outside that acts."""

from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbot.cards.card import quality_points
from hubbot.cards.labels import NARROW, WIDE, Frame, place_labels
from hubbot.cards.picture import CHANGE, Measure, Point, draw
from hubbot.domain import Family
from hubbot.release.gate import recommend
from tests.records import HOSTILE, record

SVG = "{http://www.w3.org/2000/svg}"


def points() -> list[Point]:
    made = record()
    return quality_points(made, recommend(made.variants))


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("frame", [WIDE, NARROW])
def test_every_measured_variant_has_a_mark_and_the_text_for_those_who_cannot_see(frame: Frame) -> None:
    svg = draw(points(), title="t", frame=frame)
    root = ElementTree.fromstring(svg)
    titles = [str(element.text) for element in root.iter(f"{SVG}title")]
    named = [title.split(":")[0].split(",")[0] for title in titles]
    shown = [point.label for point in points() if math.isfinite(point.value)]
    assert named == shown
    assert all(label in root.attrib["aria-label"] for label in shown)
    assert any("recommended" in title for title in titles)
    assert any("refused" in title for title in titles)


def test_wide_labels_are_all_there() -> None:
    shown = texts(draw(points(), title="t"))
    assert {point.label for point in points() if math.isfinite(point.value)} <= set(shown)


def measured(label: str, size: int, value: float, error: float | None = None) -> Point:
    return Point(label=label, family=Family.GGUF, size=size, value=value, error=error)


def marks(svg: str) -> list[float]:
    return [float(mark.attrib["cy"]) for mark in ElementTree.fromstring(svg).findall(f"{SVG}circle")]


def test_a_fall_of_the_perplexity_stands_below_the_line_of_zero_and_apart_from_another() -> None:
    made = [measured("a", 10**9, 0.0061), measured("b", 2 * 10**9, 0.0), measured("c", 3 * 10**9, -0.0011)]
    svg = draw([*made, measured("d", 4 * 10**9, -0.0004)], title="t", measure=CHANGE)
    above, zero, fallen, little = marks(svg)
    assert above < zero < little < fallen < WIDE.bottom
    assert "0 %" in texts(svg)
    line = next(one for one in ElementTree.fromstring(svg).iter(f"{SVG}line") if "zero" in one.attrib["class"])
    assert float(line.attrib["y1"]) == pytest.approx(zero, abs=0.1)


def test_the_dotted_line_does_not_go_on_for_what_the_errors_explain() -> None:
    def front(error: float | None) -> int:
        made = [measured("small", 10**9, 0.010, error), measured("large", 2 * 10**9, 0.009, error)]
        return draw(made, title="t").count('class="front"')

    assert front(0.0001) == 1
    assert front(0.001) == 0
    assert front(None) == 0


@pytest.mark.parametrize("frame", [WIDE, NARROW])
def test_no_label_is_lost_however_close_the_marks_lie(frame: Frame) -> None:
    made = [measured(f"gptq-4bit-{index}g-actorder", 10**9 + index, 0.01 + index * 1e-6) for index in range(40)]
    assert {point.label for point in made} <= set(texts(draw(made, title="t", frame=frame)))


def test_sizes_and_values_stand_there_in_the_words_of_the_tables() -> None:
    made = [measured("a", 677_600_000, 0.0462, 0.0005), measured("b", 2_480_000_000, 0.00002)]
    svg = draw(made, title="t")
    assert "a: 677.6 MB, 0.0462 ± 0.000500" in svg
    assert {"1 GB", "2 GB", "0.001"} <= set(texts(svg))
    assert not re.search(r"\de-\d", " ".join(texts(svg)))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(80, 830), st.integers(100, 410)), min_size=1, max_size=40))
def test_labels_touch_neither_each_other_nor_a_mark(spots: list[tuple[int, int]]) -> None:
    labels = [f"gptq-4bit-{index}g" for index in range(len(spots))]
    boxes = place_labels(labels, [(float(x), float(y)) for x, y in spots], range(len(spots)))
    placed = [(index, box) for index, box in enumerate(boxes) if box]
    for (_, one), (_, two) in itertools.combinations(placed, 2):
        assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
    for index, (left, top, right, bottom) in placed:
        assert 0 < left < right < WIDE.width
        assert 0 < top < bottom < WIDE.height
        for other, (x, y) in enumerate(spots):
            assert other == index or not (left < x < right and top < y < bottom)


def test_a_single_mark_is_always_labelled() -> None:
    assert place_labels(["Q4_K_M"], [(830.0, 95.0)], [0])[0] is not None


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 10**12), st.floats(allow_nan=True, allow_infinity=True, width=32)),
        min_size=1,
        max_size=12,
    )
)
def test_any_numbers_give_sound_svg_inside_its_frame(numbers: list[tuple[int, float]]) -> None:
    made = [Point(label="Q8_0", family=Family.GGUF, size=size, value=value) for size, value in numbers]
    svg = draw(made, title="t")
    if not any(math.isfinite(value) for _, value in numbers):
        assert svg == ""
        return
    root = ElementTree.fromstring(svg)
    assert "nan" not in svg.lower()
    marks = root.findall(f"{SVG}circle")
    assert len(marks) == sum(math.isfinite(value) for _, value in numbers)
    for mark in marks:
        assert WIDE.left - 1 <= float(mark.attrib["cx"]) <= WIDE.right + 1
        assert WIDE.top - 1 <= float(mark.attrib["cy"]) <= WIDE.bottom + 1


def test_hostile_labels_stay_text() -> None:
    made = [Point(label=text, family=Family.BNB, size=10**9 + i, value=0.1 + i) for i, text in enumerate(HOSTILE)]
    svg = draw(made, title=HOSTILE[0], measure=Measure(axis=HOSTILE[1], shown=str, error=str))
    root = ElementTree.fromstring(svg)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        *("svg", "style", "rect", "text", "line", "path", "circle", "g", "title")
    }
    drawing = set(
        "xmlns class viewBox role aria-label x y x1 x2 y1 y2 r rx cx cy d width height transform text-anchor".split()
    )
    assert {name for element in root.iter() for name in element.attrib} <= drawing


def test_the_picture_carries_both_colour_schemes_and_asks_for_nothing() -> None:
    svg = draw(points(), title="t")
    assert "prefers-color-scheme:dark" in svg
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    assert "style=" not in svg
