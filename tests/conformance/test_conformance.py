"""A few architectures of the table, one of each kind; `make conformance` runs them all."""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.conformance.__main__ import DOCS, architectures, main
from tests.conformance.models import model_type_of
from tests.conformance.page import as_page
from tests.conformance.trial import try_architecture


@pytest.mark.slow
def test_an_architecture_passes_in_every_family_in_its_own_runtime(tmp_path: Path) -> None:
    found = try_architecture("ApertusForCausalLM", tmp_path)
    assert {column: outcome.kind for column, outcome in found.items()} == dict.fromkeys(
        ["base", "GGUF", "imatrix", "GPTQ", "W4A16", "bitsandbytes"], "passes"
    )


def test_a_model_that_cannot_be_made_is_a_row_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.conformance.trial.write_tiny", lambda *_: 1 / 0)
    assert try_architecture("LlamaForCausalLM", tmp_path)["base"].kind == "no model"


@pytest.mark.parametrize(
    ("asked", "told"),
    [("Zamba2ForCasualLM", "Zamba2ForCausalLM"), ("Whisper", r"docs/architectures\.md has the classes")],
)
def test_a_class_that_there_is_no_tiny_model_of_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, asked: str, told: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["conformance", "LlamaForCausalLM", asked])
    with pytest.raises(SystemExit, match=rf"^There is no tiny model of {asked}: .*{told}"):
        main()


def test_the_page_is_what_the_rows_say() -> None:
    kept = json.loads((DOCS / "architectures.json").read_text())
    assert (DOCS / "architectures.md").read_text() == as_page(kept)
    assert list(kept["rows"]) == architectures()


def test_the_page_names_no_place_of_the_machine_that_made_it() -> None:
    kept = json.loads((DOCS / "architectures.json").read_text())
    told = [outcome["told"] for row in kept["rows"].values() for outcome in row["outcomes"].values()]
    assert not [words for words in told if re.search(r"(^|[\s'\"(])/\w+/|0x[0-9a-f]{8}", words)]


def test_the_counts_are_of_rows_that_were_run_and_known_to_the_runtime() -> None:
    passes, fails = ({"kind": kind, "told": "", "divergence": None} for kind in ("passes", "failed"))
    known = {"llama_cpp": True, "gptqmodel": True}
    rows = {
        "A": {**known, "outcomes": {"base": passes, "GGUF": passes, "GPTQ": fails}},
        "B": {**known, "outcomes": {"base": passes, "GGUF": fails, "GPTQ": fails}},
        "C": {"llama_cpp": False, "gptqmodel": True, "outcomes": {"base": passes, "GGUF": passes, "GPTQ": passes}},
        "D": {**known, "outcomes": {}},
        "E": {**known, "outcomes": {"base": {**fails, "kind": "no model"}}},
        "F": {**known, "outcomes": {"GGUF": {**fails, "kind": "refused"}, "GPTQ": {**fails, "kind": "refused"}}},
        "G": {**known, "outcomes": {"GGUF": passes, "GPTQ": {**fails, "kind": "refused"}, "W4A16": passes}},
        "H": {**known, "outcomes": {"GGUF": passes, "GPTQ": passes, "W4A16": passes}},
    }
    page = as_page({"made": {"tools": "t", "machine": "m", "date": "d"}, "rows": rows})
    assert "6 of 8 architectures were run." in page
    assert "GGUF passes for 3 of the 5 " in page
    assert "GPTQ passes for 2 of the 6 " in page
    assert "The same codes pass as W4A16 alone for 1 more of them." in page
    assert re.findall(r"^\| (\w) \|.*not run", page, re.MULTILINE) == ["D", "E"]
    assert "| F | yes | yes |  | refused |" in page  # in the plan, so that there was no sweep to compare


def test_a_class_of_text_and_images_has_the_model_type_of_its_text() -> None:
    assert model_type_of("Qwen3_5ForCausalLM") == "qwen3_5_text"
    assert model_type_of("Gemma3ForConditionalGeneration") is None
