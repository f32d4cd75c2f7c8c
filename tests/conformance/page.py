"""docs/architectures.md, from the rows that were run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["as_page", "plain"]

_COLUMNS = ("GGUF", "imatrix", "GPTQ", "W4A16", "bitsandbytes", "mmproj")
_GOALS = {"GGUF": ("llama_cpp", 90, 98), "GPTQ": ("gptqmodel", 80, 94)}
_MARKS = {
    "passes": "passes",
    "refused": "refused",
    "failed": "**fails**",
    "crashed": "**crashes**",
    "unseen": "not compared",
}


def as_page(found: Mapping[str, Any]) -> str:
    rows: Mapping[str, Any] = found["rows"]
    return "\n".join([*_head(found["made"], rows), *_table(rows), *_reasons(rows), ""])


def _head(made: Mapping[str, str], rows: Mapping[str, Any]) -> Iterable[str]:
    yield "# Architectures"
    yield ""
    yield "Written by `make conformance` (`tests/conformance`): every causal language model that transformers shares with the pinned"
    yield "llama.cpp's converter, and some more that GPTQModel or the Hub knows, as a tiny random model in the Hub's layout. One sweep"
    yield "makes Q8_0 (GGUF), Q4_K_M with an importance matrix (imatrix), gptq-4bit-32g, w4a16-32g (W4A16: the codes of GPTQ in"
    yield "compressed-tensors' layout) and bnb-nf4; each is then read by its own runtime. A row without W4A16 was run before that column was."
    yield "**mmproj**: a test image gives the same embeddings in llama.cpp's multimodal library as in transformers, of models that see."
    yield "**base**: the sweep's perplexity is plain transformers' to 1e-6. **refused**: the plan says why, before a weight is read."
    yield ""
    yield f"Run with {made['tools']} on {made['machine']}, {made['date']}. {made.get('beside', '')}".rstrip()
    yield ""
    tried = [row for row in rows.values() if _was_run(row)]
    yield f"{len(tried)} of {len(rows)} architectures were run."
    for column, (knows, wanted, of) in _GOALS.items():
        known = [row for row in tried if row[knows]]
        passed = sum(_kind(row, column) == "passes" for row in known)
        runtime = {"llama_cpp": "llama.cpp's converter", "gptqmodel": "GPTQModel"}[knows]
        yield f"{column} passes for {passed} of the {len(known)} that were run and {runtime} knows; the goal is {wanted} of {of}."
    alone = [row for row in tried if row["gptqmodel"] and _kind(row, "GPTQ") != "passes" == _kind(row, "W4A16")]
    yield f"The same codes pass as W4A16 alone for {len(alone)} more of them."
    yield ""


def _table(rows: Mapping[str, Any]) -> Iterable[str]:
    yield "| architecture | llama.cpp | GPTQModel | base | GGUF | imatrix | GPTQ | W4A16 | bitsandbytes | mmproj |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, row in rows.items():
        cells = [_cell(row, column) for column in ("base", *_COLUMNS)]
        yield f"| {' | '.join([name, _knows(row['llama_cpp']), _knows(row['gptqmodel']), *cells])} |"
    yield ""


def _reasons(rows: Mapping[str, Any]) -> Iterable[str]:
    yield "## What was said"
    yield ""
    for name, row in rows.items():
        told = Counter(outcome["told"] for outcome in row["outcomes"].values() if outcome["told"])
        for said in told:
            columns = [column for column, outcome in row["outcomes"].items() if outcome["told"] == said]
            yield f"- {name}, {', '.join(columns)}: {plain(said)}"


def _was_run(row: Mapping[str, Any]) -> bool:
    """Whether there was a model to run: not every configuration can be made small by its sizes alone."""
    return bool(row["outcomes"]) and _kind(row, "base") != "no model"


def _kind(row: Mapping[str, Any], column: str) -> str:
    return str(row["outcomes"].get(column, {}).get("kind", ""))


def _cell(row: Mapping[str, Any], column: str) -> str:
    return _MARKS.get(_kind(row, column), "") if _was_run(row) else "not run"


def _knows(value: bool) -> str:
    return "yes" if value else ""


def plain(text: str) -> str:
    """Text of foreign libraries as text of a list: no line, no markup."""
    return "".join("\\" + mark if mark in "\\`*_[]<>|#" else mark for mark in " ".join(text.split())[:400])
