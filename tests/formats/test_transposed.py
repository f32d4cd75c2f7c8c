"""GPT-2 stores the weights of its layers [in, out]; files have them as every other model's, and readers compute the same."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubbot.errors import Unsupported
from hubbot.formats import bnb, gptq
from hubbot.formats.foreign import read_artefact
from hubbot.formats.linears import find_linears
from hubbot.model import part_layout, read_facts
from tests.models import make_model
from tests.quantized import bnb_format, encode_all, gptq_format, logits, packed_format, tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("gpt2", tmp_path_factory.mktemp("gpt2") / "tiny")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "write", "read"), [
    ("gptq-4bit-128g", gptq_format, gptq.read),
    ("bnb-nf4", bnb_format, bnb.read),
    ("bnb-int8", bnb_format, bnb.read),
])  # fmt: skip
def test_readers_compute_with_the_decoded_weights(name, write, read, folder, tmp_path) -> None:
    family = write(folder, [name], tmp_path)
    decoded = encode_all(family, folder)[name]
    assert decoded["transformer.h.0.mlp.c_fc.weight"].shape == (256, 1024)
    (made,) = family.finish().values()
    reference = tmp_path / "reference.safetensors"
    found = logits(folder, decoded)[:, 8:].contiguous()
    save_file({"tokens": tokens(2, 48), "logits": found, "first": torch.tensor([8])}, reference)
    check = read(made.paths, reference).check
    assert check.passed, check
    artefact = read_artefact(made.paths[0].parent, read_facts(folder))
    block = part_layout(read_facts(folder))[1]
    (again,) = artefact.encode(block, {}, {}).values()
    assert all(torch.equal(again[tensor].decode(), decoded[tensor]) for tensor in block.tensors if tensor in decoded)


@pytest.mark.slow
def test_weights_under_the_names_of_the_bare_model_go_under_those_that_gptqmodel_looks_for(folder, tmp_path) -> None:
    shutil.copytree(folder, tmp_path / "bare")
    weights = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in weights.items() if name != "lm_head.weight"}
    save_file(bare, tmp_path / "bare/model.safetensors", metadata={"format": "pt"})
    family = gptq_format(tmp_path / "bare", ["gptq-4bit-128g"], tmp_path)
    decoded = encode_all(family, tmp_path / "bare")["gptq-4bit-128g"]
    assert "h.0.mlp.c_fc.weight" in decoded
    (made,) = family.finish().values()
    reference = tmp_path / "reference.safetensors"
    found = logits(tmp_path / "bare", decoded)[:, 8:].contiguous()
    save_file({"tokens": tokens(2, 48), "logits": found, "first": torch.tensor([8])}, reference)
    check = gptq.read(made.paths, reference).check
    assert check.passed, check


@pytest.mark.slow
def test_falcons_own_class_of_layers_is_read_by_gptqmodel_and_left_out_by_bitsandbytes(tmp_path: Path) -> None:
    falcon = make_model("falcon", tmp_path / "tiny")
    family = gptq_format(falcon, ["gptq-4bit-128g"], tmp_path)
    decoded = encode_all(family, falcon)["gptq-4bit-128g"]
    (made,) = family.finish().values()
    reference = tmp_path / "reference.safetensors"
    found = logits(falcon, decoded)[:, 8:].contiguous()
    save_file({"tokens": tokens(2, 48), "logits": found, "first": torch.tensor([8])}, reference)
    check = gptq.read(made.paths, reference).check
    assert check.passed, check
    with pytest.raises(Unsupported, match="of a class of its own"):
        bnb_format(falcon, ["bnb-nf4"], tmp_path / "bnb")


def test_its_layers_are_found_with_rows_and_columns_the_right_way_round(folder: Path) -> None:
    layers = {
        linear.module.removeprefix("transformer.h.0."): linear for linear in find_linears(read_facts(folder)).blocks
    }
    wide = layers["mlp.c_fc"]
    assert (wide.out_features, wide.in_features, wide.transposed) == (1024, 256, True)


def test_compressed_tensors_is_refused_for_no_reader_replaces_such_layers(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"transposed layers \(Conv1D\) such as transformer.h.0.attn.c_attn.weight"):
        packed_format(folder, ["w4a16-128g"], tmp_path)
