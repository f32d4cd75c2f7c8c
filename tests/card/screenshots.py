"""Pictures of a report, to be looked at: `python -m tests.card.screenshots FOLDER [REPORT.html]`.

Without a report: an invented one of 16 blocks, and one of 80.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

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


def main() -> None:
    """Write the pictures into a folder."""
    into = Path(sys.argv[1])
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
