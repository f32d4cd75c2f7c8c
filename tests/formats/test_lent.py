"""What several blocks compute with is rounded by no family, which says so, or refuses the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hubbot.child.source import examine
from hubbot.errors import Unsupported
from hubbot.formats import costs_of, open_formats
from hubbot.formats.linears import find_linears
from hubbot.formats.names import parse_variants
from hubbot.formats.protocol import Cost
from hubbot.model import read_facts
from hubbot.settings import Settings
from tests.models import make_model, make_other
from tests.quantized import source_of
from tests.sweep.test_borrowed import SHARED, ZAMBA
from tests.sweeps import run_sweep, windows

NAMES = ("gptq-4bit-32g", "w4a16-32g-e2e", "bnb-nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_other("Zamba2Config", ZAMBA, tmp_path_factory.mktemp("lent") / "tiny")


def test_layers_that_several_blocks_compute_with_are_known_by_all_their_paths(folder: Path) -> None:
    found = find_linears(facts := read_facts(folder))
    stored = [name for name, info in facts.tensors.items() if SHARED in name and len(info.shape) == 2]
    assert stored
    assert sorted(layer.name for layer in found.lent) == sorted(stored)
    shared = {path for path in found.outside if SHARED in path}
    assert {path.split(".")[2] for path in shared} == {"1", "2", "3", "5"}
    assert not [layer for layer in found.blocks if SHARED in layer.name]
    assert not [path for path in found.routers if SHARED in path], "they are told by their modules"


def test_matrices_by_heads_in_a_state_spaces_mixer_are_no_experts(tmp_path: Path) -> None:
    values = {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "num_hidden_layers": 4,
        "n_mamba_heads": 2,
        "mamba_dt_rank": 16,
    }
    facts = read_facts(make_other("ZambaConfig", {**values, "attention_head_dim": 32}, tmp_path / "tiny"))
    assert [name for name, info in facts.tensors.items() if len(info.shape) == 3 and name.endswith("x_proj_weight")]
    found = find_linears(facts)
    assert not found.stacked
    assert not [layer for layer in (*found.blocks, *found.lent) if layer.expert]


def told_of(folder: Path) -> str:
    layers = find_linears(read_facts(folder))
    lent, rounded = (sum(layer.weights for layer in some) for some in (layers.lent, layers.blocks))
    share = f"{lent / (lent + rounded):.1%} of the layers' weights"
    return f"{len(layers.lent)} layers stay at 16 bits, {share}: several blocks compute with them, "


@pytest.mark.slow
def test_a_plan_says_that_they_stay(folder: Path, tmp_path: Path) -> None:
    facts = examine(read_facts(folder), gradients=True)
    costs = costs_of(parse_variants(",".join(NAMES)), source_of(folder), facts, tmp_path, Settings())
    for name in NAMES:
        cost = costs[name]
        assert isinstance(cost, Cost), cost
        assert told_of(folder) in (cost.note or "")


@pytest.mark.heavy
def test_files_hold_them_as_they_were_and_say_so(folder: Path, tmp_path: Path) -> None:
    formats = open_formats(
        variants=parse_variants(",".join(NAMES)),
        source=source_of(folder),
        facts=read_facts(folder),
        work=tmp_path / "work",
        out=tmp_path / "out",
        settings=Settings(),
        calibration=None,
        decoded=True,
        device="cpu",
    )
    made = run_sweep(folder, tmp_path, formats, calibration=windows(1, 6), evaluation=windows(2, 3))
    assert not made.failed
    assert all(0 < made.scores[name].kld.mean < 1 for name in NAMES)
    stored = load_file(folder / "model.safetensors")
    for name in NAMES:
        assert any(told_of(folder) in note for note in made.files[name].notes)
        found = load_file(next(path for path in made.files[name].paths if path.suffix == ".safetensors"))
        assert all(torch.equal(found[tensor], weight) for tensor, weight in stored.items() if SHARED in tensor)
        assert any(tensor not in found or found[tensor].dtype != weight.dtype for tensor, weight in stored.items())


def test_gguf_types_are_refused_in_the_plan_where_a_block_borrows(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "tiny")
    facts = replace(read_facts(folder), borrowed={1: ("model.layers.0.mlp.up_proj.weight",)})
    found = costs_of(parse_variants("Q8_0"), source_of(folder), facts, tmp_path, Settings())["Q8_0"]
    assert isinstance(found, Unsupported)
    told = "Block 1 computes with weights that another part of the model stores (model.layers.0.mlp.up_proj.weight)."
    assert str(found).startswith(told)
