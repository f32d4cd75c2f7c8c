"""Pictures of a report or a card, to be looked at: `python -m tests.cards.screenshots FOLDER [REPORT.html | README.md]`.

Without either: an invented report of 16 blocks, and one of 80.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

from markdown_it import MarkdownIt

from hubbot.cards.report import write_report
from hubbot.domain import Record
from tests import chromium
from tests.records import layer_errors, record


def deep_record() -> Record:
    """The invented run, of a model with 80 blocks."""
    made = record()
    variants = tuple(
        replace(one, layer_errors=layer_errors(one.score.kld.mean if one.score else math.nan, layers=80))
        for one in made.variants
    )
    return replace(made, variants=variants)


def screenshots(report: Path, into: Path) -> list[Path]:
    """The whole page on a desk and on a phone, light and dark; returns the PNG files."""
    into.mkdir(parents=True, exist_ok=True)
    made = []
    with chromium.browser() as page:
        for width in (1280, 390):
            for dark in (True, False):
                page.open(report.resolve().as_uri(), width=width, dark=dark)
                made.append(into / f"{width}-{'dark' if dark else 'light'}.png")
                page.screenshot(made[-1])
    return made


def card_screenshot(card: Path, into: Path) -> Path:
    """A card as a Markdown reader without a theme of its own shows it, in the width of a page on the Hub."""
    into.mkdir(parents=True, exist_ok=True)
    text = card.read_text(encoding="utf-8").partition("\n---\n")[2]
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    page_file = card.parent / "card.html"  # beside the picture that it shows
    page_file.write_text(f"<!doctype html><meta charset=utf-8><style>{_STYLE}</style>{body}", encoding="utf-8")
    try:
        with chromium.browser() as page:
            page.open(page_file.resolve().as_uri(), width=920)
            page.screenshot(into / "card.png")
    finally:
        page_file.unlink()
    return into / "card.png"


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; background: #fff; max-width: 860px; margin: 24px auto; padding: 0 20px }
h1, h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: .2em } img { max-width: 100% }
table { border-collapse: collapse; display: block; overflow-x: auto } td, th { border: 1px solid #d1d9e0; padding: 4px 10px }
code, pre { background: #f3f5f7; border-radius: 4px } code { padding: 1px 4px } pre { padding: 10px; overflow-x: auto }
"""


def main() -> None:
    """Write the pictures into a folder."""
    into = Path(sys.argv[1])
    if sys.argv[-1].endswith(".md"):
        print(card_screenshot(Path(sys.argv[-1]), into))
        return
    if len(sys.argv) > 2:
        reports = {"report": Path(sys.argv[2])}
    else:
        invented = {"16-blocks": record(), "80-blocks": deep_record()}
        reports = {name: write_report(one, into / name) for name, one in invented.items()}
    for name, report in reports.items():
        for file in screenshots(report, into / name):
            print(file)


if __name__ == "__main__":
    main()
