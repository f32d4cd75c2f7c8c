"""Layers that a checkpoint stores in one tensor and transformers cuts out of it: HRM's query, key, value and gate."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from hubbot.errors import Unsupported
from hubbot.formats import costs_of, open_formats
from hubbot.formats.foreign import read_artefact
from hubbot.formats.linears import Cut, find_linears
from hubbot.formats.names import parse_variants
from hubbot.formats.packed import read
from hubbot.formats.protocol import Cost
from hubbot.model import read_facts
from hubbot.settings import Settings
from hubbot.sweep.references import References
from tests.formats.gptq.test_experts import read_apart
from tests.models import make_other
from tests.quantized import source_of
from tests.sweep.test_turns import HRM
from tests.sweeps import run_sweep, windows

NAMES = ("gptq-4bit-32g", "w4a16-32g", "bnb-nf4")
FUSED = "model.H_module.layers.1.attn.gqkv_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = HRM | {"num_hidden_layers": 2, "H_cycles": 1, "L_cycles": 2}
    return make_other("HrmTextConfig", values, tmp_path_factory.mktemp("cut") / "tiny", bytes_vocabulary=True)


def test_a_tensor_is_cut_into_the_layers_whose_rows_it_holds(folder: Path) -> None:
    found = find_linears(facts := read_facts(folder))
    layers = {layer.module: layer for layer in found.pieces}
    assert len(layers) == 2 * 2 * (4 + 2)
    for lot, name in enumerate(["gate_proj", "q_proj", "k_proj", "v_proj"]):
        layer = layers[f"model.H_module.layers.1.self_attn.{name}"]
        assert layer.cut == Cut(tensor=FUSED, expert=None, lot=lot, lots=4)
        assert (layer.statistics, layer.out_features, layer.in_features) == (FUSED, 64, 64)
    assert {layer.tensor for layer in (*found.blocks, *found.pieces)} == {
        name for name in facts.tensors if "_module." in name
    }
    assert (found.joined, found.routers, found.stacked) == ((), (), ())


@pytest.mark.heavy
def test_files_hold_a_layer_each_and_their_readers_compute_what_the_sweep_did(folder: Path, tmp_path: Path) -> None:
    facts, source, variants = read_facts(folder), source_of(folder), parse_variants(",".join(NAMES))
    formats = open_formats(
        variants=variants,
        source=source,
        facts=facts,
        work=tmp_path / "work",
        out=tmp_path / "out",
        settings=Settings(),
        calibration=None,
        decoded=True,
        device="cpu",
    )
    references = References(evaluation := windows(2, 3))
    made = run_sweep(folder, tmp_path, formats, calibration=windows(1, 6), evaluation=evaluation, references=references)
    saved = references.save(tmp_path / "references")
    costs, weights = (
        costs_of(variants, source, facts, tmp_path / "plan", Settings()),
        load_file(folder / "model.safetensors"),
    )
    for name in NAMES:
        files, cost = made.files[name], costs[name]
        assert isinstance(cost, Cost)
        assert files.weight_bytes == cost.weight_bytes
        assert 0 < made.scores[name].kld.mean < 1
        tensors = load_file(next(path for path in files.paths if path.suffix == ".safetensors"))
        assert any(
            tensor.startswith(FUSED.replace("attn.gqkv_proj", "self_attn.k_proj").removesuffix("weight"))
            for tensor in tensors
        )
        assert not [tensor for tensor in tensors if "gqkv" in tensor]
        decoded = read_artefact(files.paths[0].parent, facts)._tensors[FUSED].decode()
        error = float((decoded - weights[FUSED].float()).square().sum() / weights[FUSED].float().square().sum())
        assert error == pytest.approx(made.layer_errors[name][FUSED], rel=1e-3)
        assert error < 0.1
    assert read(made.files["w4a16-32g"].paths, saved["w4a16-32g"]).check.passed
    assert read_apart(made.files["gptq-4bit-32g"].paths, saved["gptq-4bit-32g"])["passed"]


@pytest.mark.slow
def test_zero_points_of_such_layers_are_refused_in_the_plan_of_what_transformers_reads(
    folder: Path, tmp_path: Path
) -> None:
    costs = costs_of(
        parse_variants("w4a16-32g,w4a16-32g-asym"), source_of(folder), read_facts(folder), tmp_path, Settings()
    )
    assert isinstance(costs["w4a16-32g"], Cost)
    told = costs["w4a16-32g-asym"]
    assert isinstance(told, Unsupported)
    assert "attn.gqkv_proj.weight into several layers" in str(told)
    assert str(told).endswith("Leave -asym out of the variant's name for this model.")
