"""What other releases changed in docs/architectures.json, as the text of a pull request: the last step of `make upgrade`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.conformance.page import plain

__all__ = ["difference"]

ROOT = Path(__file__).parents[2]
_TABLE = "docs/architectures.json"


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Two tables compared, each {"made": …, "rows": {architecture: …}}; the first line is a title."""
    was, found = (
        {(name, column): outcome for name, row in table["rows"].items() for column, outcome in row["outcomes"].items()}
        for table in (before, now)
    )
    passed = {key for key, outcome in was.items() if outcome["kind"] == "passes"}
    passes = {key for key, outcome in found.items() if outcome["kind"] == "passes"}
    new = sorted(now["rows"].keys() - before["rows"].keys())
    gone = sorted(before["rows"].keys() - now["rows"].keys())
    lines = [
        f"# {now['made']['tools']}",
        "",
        f"Before: {before['made']['tools']}. {len(passed)} cells of the table passed, {len(passes)} do.",
    ]
    lines += _section("Passes now", [f"{name}, {column}" for name, column in sorted(passes - passed)])
    lines += _section("Passes no longer", [_lost(key, found) for key in sorted(passed - passes)])
    lines += _section("New architectures", [f"{name}: {_outcomes(now['rows'][name])}" for name in new])
    lines += _section("Gone", gone)
    return "\n".join([*lines, ""])  # fmt: skip


def _section(title: str, entries: list[str]) -> Iterator[str]:
    if entries:
        yield from ("", f"## {title}", "", *(f"- {entry}" for entry in entries))


def _lost(key: tuple[str, str], found: Mapping[tuple[str, str], Any]) -> str:
    outcome = found.get(key, {"kind": "not run", "told": ""})
    return f"{', '.join(key)}: {outcome['kind']}. {plain(outcome['told'])}".rstrip()


def _outcomes(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{column} {outcome['kind']}" for column, outcome in row["outcomes"].items()) or "not run"


def main() -> None:
    committed = ["git", "show", f"HEAD:{_TABLE}"]
    before = json.loads(subprocess.run(committed, cwd=ROOT, capture_output=True, check=True).stdout)
    print(difference(before, json.loads((ROOT / _TABLE).read_text(encoding="utf-8"))), end="")


if __name__ == "__main__":
    main()
