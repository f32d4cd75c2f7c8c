"""Experts that a checkpoint stores with inputs before outputs, and transformers after them."""

from pathlib import Path

import pytest

from hubbot.formats.linears import Cut, find_linears
from hubbot.model import read_facts
from tests.conformance.models import write_tiny


@pytest.mark.slow
def test_experts_that_are_turned_on_loading_are_cut_into_a_matrix_for_each(tmp_path: Path) -> None:
    facts = read_facts(write_tiny("Qwen3VLMoeForConditionalGeneration", tmp_path / "tiny"))
    name = "model.language_model.layers.1.mlp.experts"
    assert facts.tensors[f"{name}.gate_up_proj"].shape == (4, 256, 1024)
    found = {piece.module: piece for piece in find_linears(facts).pieces}
    assert len(found) == 2 * 4 * 3
    up, down = found[f"{name}.3.up_proj"], found[f"{name}.0.down_proj"]
    assert (up.in_features, up.out_features, up.transposed) == (256, 512, True)
    assert (down.in_features, down.out_features, down.transposed) == (512, 256, True)
    assert up.cut == Cut(tensor=f"{name}.gate_up_proj", expert=3, lot=1, lots=2)
