"""The report in a real browser: nothing leaves it, everything can be read, sorted and reached by keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbot.cards.figures import nats
from hubbot.cards.heat import heat_map
from hubbot.cards.report import FILE_NAME, render_report, write_report
from hubbot.cards.sides import parts
from hubbot.record.file import from_json, to_json
from tests import chromium
from tests.cards.screenshots import deep_record, screenshots
from tests.cards.test_escape import Seen
from tests.records import hostile_record, record

IN_BROWSER = pytest.mark.skipif(chromium.EXECUTABLE is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def page() -> Iterator[chromium.Page]:
    with chromium.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(record(), tmp_path_factory.mktemp("report")).as_uri()


@pytest.fixture(scope="module")
def deep_address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(deep_record(), tmp_path_factory.mktemp("deep")).as_uri()


@pytest.fixture(scope="module")
def hostile_address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(hostile_record(), tmp_path_factory.mktemp("hostile")).as_uri()


# --- without a browser ------------------------------------------------------------------------------


def test_the_page_is_one_file_that_depends_on_the_record_alone(tmp_path: Path) -> None:
    write_report(record(), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE_NAME]
    assert render_report(from_json(to_json(record()))) == (tmp_path / FILE_NAME).read_text()


def test_a_bare_record_has_no_empty_section() -> None:
    made = record()
    bare = tuple(
        replace(v, score=None, speed=None, samples=(), layer_errors={}, load_check=None) for v in made.variants
    )
    text = render_report(replace(made, variants=bare, base=None, evaluation=None, timings={}, calibration=None))
    for gone in ("h-plots", "h-heat", "h-samples", "h-times", "Perplexity", "KL mean"):
        assert f'id="{gone}"' not in text
        assert f">{gone}<" not in text
    assert "Q8_0" in text


def test_a_forced_overlap_is_said() -> None:
    made = record()
    assert made.calibration is not None
    forced = replace(made, calibration=replace(made.calibration, overlap_forced=True))
    assert "Calibrated on evaluation text" in render_report(forced)
    assert "Calibrated on evaluation text" not in render_report(made)


def test_hostile_text_adds_no_tag() -> None:
    plain, hostile = Seen(render_report(record())), Seen(render_report(hostile_record()))
    assert set(hostile.tags) <= set(plain.tags)
    assert hostile.tags.count("script") == 1
    assert hostile.tags.count("a") == 1  # the skip link; the hostile repo id is no link
    assert "<script>alert(1)</script>" in hostile.text


@given(st.text("ab .\n", max_size=30), st.text("ab .\n", max_size=30))
def test_the_pieces_of_both_texts_make_them_up_and_agree_where_unmarked(one: str, two: str) -> None:
    left, right = parts(one, two)
    assert "".join(text for text, _ in left) == one
    assert "".join(text for text, _ in right) == two
    assert "".join(text for text, differs in left if not differs) == "".join(
        text for text, differs in right if not differs
    )
    assert any(differs for _, differs in left + right) == (one != two)


def test_the_heat_map_has_a_row_a_kind_and_a_column_a_block() -> None:
    found = heat_map(record().variants[4])
    assert found is not None
    assert found.blocks == 16
    assert list(found.rows)[:2] == ["self_attn.q_proj", "self_attn.k_proj"]
    assert [name for name, _ in found.outside] == ["model.embed_tokens.weight"]
    worst = max(record().variants[4].layer_errors.items(), key=lambda pair: pair[1])
    assert found.worst[0] == worst
    assert found.scale.level(worst[1]) == 9
    assert found.scale.level(found.scale.low) == 0


def test_experts_count_as_their_worst_and_odd_names_do_not_stop_the_map() -> None:
    errors = {
        "model.layers.0.mlp.experts.0.up_proj.weight": 0.1,
        "model.layers.0.mlp.experts.1.up_proj.weight": 0.3,
        "model.layers.99999999999999.x.weight": 0.2,
        "": 0.1,
        "nan": float("nan"),
    }
    found = heat_map(replace(record().variants[0], layer_errors=errors))
    assert found is not None
    assert found.rows == {"mlp.experts.*.up_proj": (0.3,)}
    assert len(found.outside) == 2


def test_the_numbers_of_a_heat_map_stand_in_a_table_besides() -> None:
    made = record().variants[4]
    text = render_report(replace(record(), variants=(made,)))
    rows = re.findall(r'<tr><th scope="row">(\d+)</th>(.*?)</tr>', text[text.index('class="numbers"') :])
    assert [int(block) for block, _ in rows] == list(range(16))
    first = [nats(error) for name, error in made.layer_errors.items() if name.startswith("model.layers.0.")]
    assert re.findall("<td>(.*?)</td>", rows[0][1]) == first


# --- in a browser -----------------------------------------------------------------------------------

CONTRAST = """
(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const rect = node.tagName === "svg" && node.querySelector(".ground");
      const colour = parse(rect ? getComputedStyle(rect).fill : getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || node.closest("script,style,title,[hidden],option")) continue;
    if (!node.getClientRects().length) continue;
    const svg = node.closest("svg");
    const ink = parse(svg ? getComputedStyle(node).fill : getComputedStyle(node).color);
    const [high, low] = [light(ink), light(ground(node))].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    found.push([ratio, walker.currentNode.data.trim().slice(0, 40), node.className.baseVal ?? node.className]);
  }
  return { count: found.length, low: found.filter(([ratio]) => ratio < 4.5) };
})()
"""
NAMES = (
    "[...document.querySelectorAll('#results tbody tr')].map((row) => row.cells[0].textContent.replace('★', '').trim())"
)


@IN_BROWSER
@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_text_has_enough_contrast(page: chromium.Page, address: str, width: int, dark: bool) -> None:
    page.open(address, width=width, dark=dark)
    found = page.run(CONTRAST)
    assert found["count"] > 200
    assert found["low"] == []


@IN_BROWSER
@pytest.mark.slow
def test_the_contrast_check_sees_a_faint_text(page: chromium.Page, address: str) -> None:
    page.open(address)
    page.run("document.querySelector('h2').style.color = '#999'")
    page.run("document.documentElement.style.setProperty('--soft', '#aaa')")
    assert page.run(CONTRAST)["low"]


@IN_BROWSER
@pytest.mark.slow
@pytest.mark.parametrize("hostile", [False, True])
def test_nothing_is_requested_and_nothing_complains(
    page: chromium.Page, address: str, hostile_address: str, hostile: bool
) -> None:
    page.requests.clear()
    page.complaints.clear()
    target = hostile_address if hostile else address
    page.open(target)
    page.run("new Promise((done) => setTimeout(done, 300))")
    assert page.requests == [target]
    assert page.complaints == []


@IN_BROWSER
@pytest.mark.slow
def test_a_request_that_the_page_would_make_is_stopped_by_its_policy(page: chromium.Page, address: str) -> None:
    page.open(address)
    page.complaints.clear()
    made = page.run(
        "new Promise((done) => { const i = new Image(); i.onerror = () => done('stopped'); i.onload = () => done('loaded');"
        " i.src = 'http://127.0.0.1:9/x.png'; })"
    )
    assert made == "stopped"
    assert any("Content Security Policy" in text for text in page.complaints)
    page.run(
        "document.body.insertAdjacentHTML('beforeend', '<p onclick=\"window.hit = 1\" id=evil style=\"color:red\">x</p>')"
    )
    page.run("document.getElementById('evil').click()")
    assert page.run("window.hit ?? null") is None
    assert page.run("getComputedStyle(document.getElementById('evil')).color") != "rgb(255, 0, 0)"


@IN_BROWSER
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 768, 390, 320])
def test_the_page_never_scrolls_sideways(page: chromium.Page, address: str, hostile_address: str, width: int) -> None:
    for target in (address, hostile_address):
        page.open(target, width=width)
        assert page.run("document.documentElement.scrollWidth") <= width


@IN_BROWSER
@pytest.mark.slow
def test_a_desk_shows_the_whole_table_and_a_phone_the_five_that_matter_most(page: chromium.Page, address: str) -> None:
    frame = "document.querySelector('#results').parentElement"
    for width in (1180, 1280, 1920):
        page.open(address, width=width)
        assert page.run(f"{frame}.scrollWidth <= {frame}.clientWidth"), width
    page.open(address, width=390)
    edge = f"{frame}.getBoundingClientRect().right"
    heads = "[...document.querySelectorAll('#results thead th')]"
    seen = page.run(f"{heads}.filter((n) => n.getBoundingClientRect().right <= {edge}).map((n) => n.textContent)")
    assert seen == ["Variant", "Verdict", "Size", "KL mean", "Change"]


@IN_BROWSER
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_cells_of_a_deep_models_heat_map_can_be_seen_and_reached_by_keyboard(
    page: chromium.Page, deep_address: str, width: int
) -> None:
    page.open(deep_address, width=width)
    shown = "[...document.querySelectorAll('.heat tbody td')].filter((n) => n.getClientRects().length)"
    assert page.run(f"Math.min(...{shown}.map((n) => n.getBoundingClientRect().width))") >= 7.5
    assert page.run("document.documentElement.scrollWidth") <= width
    frame = (
        "[...document.querySelectorAll('.scroll')].find((n) => n.querySelector('.heat') && n.getClientRects().length)"
    )
    assert page.run(f"{frame}.scrollWidth > {frame}.clientWidth") is (width == 390)
    page.run(f"{frame}.focus()")
    assert page.run(f"document.activeElement === {frame}")
    page.run(f"{frame}.scrollLeft = 300")
    name = f"{frame}.querySelector('tbody th').getBoundingClientRect()"
    assert page.run(f"{name}.left >= {frame}.getBoundingClientRect().left - 1"), "the names stay while the map scrolls"


@IN_BROWSER
@pytest.mark.slow
def test_the_numbers_of_a_map_open_by_keyboard(page: chromium.Page, address: str) -> None:
    page.open(address)
    opened = "[...document.querySelectorAll('details')].filter((n) => n.open).length"
    assert page.run(opened) == 0
    page.run("[...document.querySelectorAll('summary')].find((n) => n.getClientRects().length).focus()")
    page.key("Enter")
    assert page.run(opened) == 1


@IN_BROWSER
@pytest.mark.slow
def test_screenshots_are_taken_of_every_width_and_scheme(tmp_path: Path) -> None:
    made = screenshots(write_report(record(), tmp_path), tmp_path / "shots")
    assert [file.name for file in made] == ["1280-dark.png", "1280-light.png", "390-dark.png", "390-light.png"]
    for file in made:
        width, height = (int.from_bytes(file.read_bytes()[at : at + 4]) for at in (16, 20))
        assert width == int(file.name.partition("-")[0])
        assert height > 2000


@IN_BROWSER
@pytest.mark.slow
def test_text_in_the_phones_pictures_is_large_enough(page: chromium.Page, address: str) -> None:
    page.open(address, width=390)
    sizes = page.run(
        "[...document.querySelectorAll('svg.pic')].filter((s) => s.getClientRects().length)"
        ".map((s) => 12.5 * s.getBoundingClientRect().width / s.viewBox.baseVal.width)"
    )
    assert len(sizes) == 2
    assert min(sizes) >= 10


@IN_BROWSER
@pytest.mark.slow
def test_drawn_labels_do_not_overlap(page: chromium.Page, address: str) -> None:
    boxes = """[...document.querySelectorAll('svg.pic')].filter((s) => s.getClientRects().length).map((s) =>
      [...s.querySelectorAll('.label,.best,.refused')].map((t) => { const b = t.getBBox(); return [t.textContent, b.x, b.y, b.x + b.width, b.y + b.height]; }))"""
    for width in (1280, 800, 390):
        page.open(address, width=width)
        for drawing in page.run(boxes):
            assert len(drawing) > 10
            for i, (one, left, top, right, bottom) in enumerate(drawing):
                for other, left2, top2, right2, bottom2 in drawing[i + 1 :]:
                    apart = right <= left2 or right2 <= left or bottom <= top2 + 3 or bottom2 <= top + 3
                    assert apart, (one, other)


def column(page: chromium.Page, heading: str) -> list[str]:
    found: list[str] = page.run(
        "(() => { const i = [...document.querySelectorAll('#results thead th')].findIndex((h) => h.textContent.trim() === '"
        + heading
        + "'); return [...document.querySelectorAll('#results tbody tr')].map((r) => r.cells[i].dataset.value); })()"
    )
    return found


@IN_BROWSER
@pytest.mark.slow
def test_the_table_is_sorted_by_keyboard_both_ways_with_unmeasured_last(page: chromium.Page, address: str) -> None:
    page.open(address)
    page.run("document.querySelectorAll('#results thead button')[1].click()")  # failed and refused ones come first
    assert column(page, "KL mean")[0] == ""
    reached = []
    for _ in range(40):
        page.key("Tab")
        reached.append(page.run("document.activeElement.textContent.trim()"))
        if reached[-1] == "KL mean":
            break
    assert reached[-1] == "KL mean", reached
    page.key("Enter")
    rising = column(page, "KL mean")
    measured = [float(value) for value in rising if value]
    assert measured == sorted(measured)
    assert len(measured) == 18
    assert rising[len(measured) :] == ["", ""]
    sorts = "[...document.querySelectorAll('th[aria-sort]')].map((h) => [h.textContent.trim(), h.getAttribute('aria-sort')])"
    assert page.run(sorts) == [["KL mean", "ascending"]]
    page.key(" ")
    falling = column(page, "KL mean")
    assert [float(value) for value in falling if value] == measured[::-1]
    assert falling[-2:] == ["", ""]
    assert page.run(sorts) == [["KL mean", "descending"]]


@IN_BROWSER
@pytest.mark.slow
def test_names_sort_as_words_and_every_row_keeps_its_cells(page: chromium.Page, address: str) -> None:
    page.open(address)
    before = page.run("[...document.querySelectorAll('#results tbody tr')].map((r) => r.textContent)")
    page.run("document.querySelector('#results thead button').click()")
    names = page.run(NAMES)
    assert names == sorted(names, key=str.lower)
    after = page.run("[...document.querySelectorAll('#results tbody tr')].map((r) => r.textContent)")
    assert sorted(after) == sorted(before)
    assert after != before


@IN_BROWSER
@pytest.mark.slow
def test_focus_is_always_visible_and_reaches_everything(page: chromium.Page, address: str) -> None:
    page.open(address)
    count = page.run(
        "[...document.querySelectorAll('a,button,select,[tabindex]')].filter((n) => n.getClientRects().length).length"
    )
    assert count >= 18
    for _ in range(count):
        page.key("Tab")
        assert page.run("document.activeElement !== document.body")
        found = page.run("getComputedStyle(document.activeElement).outlineStyle")
        assert found == "solid", page.run("document.activeElement.outerHTML.slice(0, 200)")


@IN_BROWSER
@pytest.mark.slow
def test_choosing_a_variant_by_keyboard_shows_its_map_and_its_samples(page: chromium.Page, address: str) -> None:
    page.open(address)
    shown = "[...document.querySelectorAll('[data-group=%s]')].filter((p) => p.getClientRects().length).length"
    for group in ("heat", "samples"):
        assert page.run(shown % group) == 1
        page.run(f"document.getElementById('pick-{group}').focus()")
        before = page.run(f"document.getElementById('pick-{group}').value")
        page.key("ArrowDown")
        assert page.run(f"document.getElementById('pick-{group}').value") != before
        assert page.run(shown % group) == 1
        assert page.run(
            f"document.querySelector('[data-group={group}]:not([hidden])').dataset.item"
            f" === document.getElementById('pick-{group}').value"
        )


@IN_BROWSER
@pytest.mark.slow
def test_without_a_script_everything_is_shown(page: chromium.Page, address: str) -> None:
    page.open(address, script=False)
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    spoken = " ".join(str(node.get("name", {}).get("value", "")) for node in tree)
    assert spoken.count("kinds of weights in 16 blocks") == 19
    page.open(address)


@IN_BROWSER
@pytest.mark.slow
def test_everything_has_a_name_for_a_screen_reader(page: chromium.Page, address: str) -> None:
    page.open(address)
    named: dict[str, list[Any]] = {}
    for node in page.call("Accessibility.getFullAXTree")["nodes"]:
        if not node.get("ignored"):
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "combobox", "image", "region", "link", "heading"):
        assert named.get(role), role
        assert all(name.strip() for name in named[role]), (role, named[role])
    assert len(named["columnheader"]) >= 10
    headings = page.run("[...document.querySelectorAll('h1,h2,h3,h4,h5')].map((h) => +h.tagName[1])")
    assert headings[0] == 1
    assert headings.count(1) == 1


def test_style_and_script_are_let_in_by_their_hashes_alone() -> None:
    text = render_report(record())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "unsafe" not in policy[1]
    assert "default-src &#39;none&#39;" in policy[1]
    assert not re.search(r'\sstyle="|\son[a-z]+="|<link [^>]*href="(?!data:,)', text)
