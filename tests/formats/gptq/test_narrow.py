"""Narrow layers of otherwise wide models stay at 16 bits, and every reader is told which."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubbot.domain import Gptq
from hubbot.errors import UnsupportedShape
from hubbot.formats import gptq, packed
from hubbot.formats.gptq.checkpoint import quantization_config
from hubbot.formats.gptq.choice import choose
from hubbot.formats.gptq.format import costs
from hubbot.formats.linears import Linear, Linears, find_linears
from hubbot.formats.packed.checkpoint import PACKED
from hubbot.formats.protocol import Cost
from hubbot.model import read_facts
from hubbot.settings import GptqSettings
from tests.models import make_model, make_other
from tests.quantized import encode_all, gptq_format, gptqs, logits, packed_format, source_of, tokens

LAYOUT = Gptq(bits=4, group_size=128)
WIDE = [
    Linear(f"model.layers.{n}.mamba.out_proj.weight", f"model.layers.{n}.mamba.out_proj", 1024, 512) for n in (0, 1)
]


def with_layer(path: str, rows: int, columns: int) -> Linears:
    narrow = Linear(f"model.layers.1.{path}.weight", f"model.layers.1.{path}", rows, columns)
    return Linears((*WIDE, narrow), None, "lm_head", ("model.per_layer",))


@pytest.mark.parametrize(("rows", "columns"), [(48, 512), (512, 8), (1, 512), (256, 32)])
def test_a_layer_whose_rows_columns_or_groups_do_not_fit_stays(rows: int, columns: int) -> None:
    choice = choose(with_layer("mamba.x_proj", rows, columns), LAYOUT)
    assert [linear.module for linear in choice.kept] == ["model.layers.1.mamba.x_proj"]
    assert list(choice.rounded) == [linear.name for linear in WIDE]
    assert choice.kept_kinds == (r"mamba\.x_proj",)
    assert choice.rounded_kinds == (".mamba.out_proj",)
    assert choice.note is not None
    assert choice.note.startswith("1 layer stays at 16 bits, ")
    assert f"model.layers.1.mamba.x_proj.weight [{rows}, {columns}]" in choice.note
    assert choice.outside == ("lm_head", "model.per_layer")


def test_layers_of_the_same_place_stay_together() -> None:
    wide = with_layer("mlp.experts.7.gate", 64, 128)
    narrow = replace(wide.blocks[-1], name="other", module="model.layers.0.mlp.experts.3.gate", out_features=48)
    choice = choose(replace(wide, blocks=(*wide.blocks, narrow)), LAYOUT)
    assert len(choice.kept) == 2
    assert choice.kept_kinds == (r"mlp\.experts\.\d+\.gate",)


@pytest.mark.parametrize(
    ("rows", "columns", "told"),
    [
        (1000, 1024, r"1000 outputs; .* w4a16-128g, of the same codes, and GGUF types such as Q8_0 have no such limit"),
        (1004, 1024, r"1004 outputs; .* for this model\. GGUF types such as Q8_0 have no such limit"),
        (1024, 96, "group size 32 instead"),
    ],
)
def test_what_holds_much_of_the_model_is_refused(rows: int, columns: int, told: str) -> None:
    with pytest.raises(UnsupportedShape, match=told):
        choose(with_layer("mamba.in_proj", rows, columns), LAYOUT)


def test_rows_that_fill_words_are_taken_of_layers_that_hold_too_much_to_stay_where_the_reader_takes_them() -> None:
    choice = choose(with_layer("mamba.in_proj", 1000, 1024), LAYOUT, any_rows=True)
    assert [layer.name for layer in choice.odd] == ["model.layers.1.mamba.in_proj.weight"]
    assert len(choice.rounded) == 3
    assert not choice.kept
    assert choice.note is not None
    assert choice.note.startswith("1 layer has rows that are no multiple of 32")
    assert choose(with_layer("mamba.x_proj", 48, 512), LAYOUT, any_rows=True).odd == (), "little, which stays"
    for rows, layout in ((1004, LAYOUT), (1000, Gptq(bits=3, group_size=128))):
        with pytest.raises(UnsupportedShape, match=f"has {rows} outputs"):
            choose(with_layer("mamba.in_proj", rows, 1024), layout, any_rows=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["w4a16-32g", "w4a16-32g-asym", "w8a16-32g"])
def test_transformers_computes_layers_of_compressed_tensors_with_such_rows(name: str, tmp_path: Path) -> None:
    values = {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16, "expand": 2}
    folder = make_other("Mamba2Config", values, tmp_path / "tiny")
    family = packed_format(folder, [name], tmp_path)
    decoded = encode_all(family, folder)[name]
    assert decoded["backbone.layers.0.mixer.in_proj.weight"].shape == (296, 64)
    (made,) = family.finish().values()
    (cost,) = costs(family.variants, read_facts(folder), source_of(folder), GptqSettings(), PACKED).values()
    assert isinstance(cost, Cost)
    assert made.weight_bytes == cost.weight_bytes
    assert "rows that are no multiple of 32" in (cost.note or "")
    reference = tmp_path / "reference.safetensors"
    found = logits(folder, decoded)[:, 8:].contiguous()
    save_file({"tokens": tokens(2, 48), "logits": found, "first": torch.tensor([8])}, reference)
    check = packed.read(made.paths, reference).check
    assert check.passed, check
    assert check.kld < 1e-5


def test_a_head_that_was_asked_for_and_does_not_fit_is_refused() -> None:
    with pytest.raises(UnsupportedShape, match=r"lm_head\.weight has 500 outputs"):
        choose(with_layer("mamba.x_proj", 64, 128), LAYOUT, head=Linear("lm_head.weight", "lm_head", 500, 512))


@pytest.mark.parametrize(("stack", "told"), [("model.layers", None), ("transformer.blocks", "transformer.blocks")])
def test_transformers_is_told_where_blocks_are_that_it_does_not_find_itself(stack: str, told: str | None) -> None:
    layer = Linear(f"{stack}.0.up.weight", f"{stack}.0.up", 256, 256)
    choice = choose(Linears((layer,), None, None, ()), LAYOUT)
    assert quantization_config(LAYOUT, 0.05, choice, lm_head=False).get("block_name_to_quantize") == told


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("falcon_h1", tmp_path_factory.mktemp("narrow") / "tiny")


@pytest.mark.slow
def test_the_plan_says_how_many_layers_stay_and_its_size_is_exact(hybrid: Path, tmp_path: Path) -> None:
    (cost,) = costs(gptqs(["gptq-4bit-128g"]), read_facts(hybrid), source_of(hybrid), GptqSettings()).values()
    assert isinstance(cost, Cost)
    family = gptq_format(hybrid, ["gptq-4bit-128g"], tmp_path)
    encode_all(family, hybrid)
    (made,) = family.finish().values()
    assert made.weight_bytes == cost.weight_bytes
    assert made.notes == (cost.note,)
    assert cost.note
    assert cost.note.startswith("2 layers stay at 16 bits, ")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "write", "read"), [
    ("gptq-4bit-128g", gptq_format, gptq.read),
    ("w4a16-64g", packed_format, packed.read),
])  # fmt: skip
def test_readers_compute_with_the_narrow_layers_as_they_were(name, write, read, hybrid, tmp_path) -> None:
    family = write(hybrid, [name], tmp_path)
    decoded = encode_all(family, hybrid)[name]
    (made,) = family.finish().values()
    folder = made.paths[0].parent
    narrow = "model.layers.0.mamba.in_proj.weight"
    assert narrow not in decoded
    assert torch.equal(load_file(folder / "model.safetensors")[narrow], load_file(hybrid / "model.safetensors")[narrow])
    reference = tmp_path / "reference.safetensors"
    found = logits(hybrid, decoded)[:, 8:].contiguous()
    save_file({"tokens": tokens(2, 48), "logits": found, "first": torch.tensor([8])}, reference)
    check = read(made.paths, reference).check
    assert check.passed, check
    assert check.kld < 1e-5


@pytest.mark.slow
def test_quantize_config_names_them_for_gptqmodel_and_the_others_for_transformers(hybrid: Path, tmp_path: Path) -> None:
    from gptqmodel.quantization.config import QuantizeConfig

    family = gptq_format(hybrid, ["gptq-4bit-128g"], tmp_path)
    encode_all(family, hybrid)
    folder = next(iter(family.finish().values())).paths[0].parent
    theirs = QuantizeConfig.from_pretrained(str(folder))
    assert theirs.dynamic_get("model.layers.1.mamba.in_proj") is False
    assert theirs.dynamic_get("model.layers.1.mamba.out_proj") is None
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert ".mamba.out_proj" in told["modules_in_block_to_quantize"][0]
    assert ".mamba.in_proj" not in told["modules_in_block_to_quantize"][0]


def test_layers_whose_weight_a_state_space_multiplies_itself_stay_as_they_are_in_every_family(tmp_path: Path) -> None:
    facts = read_facts(make_other("MambaConfig", {"state_size": 32, "time_step_rank": 32}, tmp_path / "tiny"))
    found = find_linears(facts)
    taken = [f"backbone.layers.{block}.mixer.dt_proj" for block in range(len(found.taken))]
    assert taken
    assert [layer.module for layer in found.taken] == taken
    assert set(taken) <= set(found.outside)
    assert not {*taken} & {layer.module for layer in found.blocks}
    choice = choose(found, Gptq(bits=4, group_size=32))
    assert r"mixer\.dt_proj" in choice.kept_kinds
    assert choice.note
    assert "the model's own code takes their weights, backbone.layers.0.mixer.dt_proj.weight" in choice.note
