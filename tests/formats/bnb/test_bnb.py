"""bitsandbytes folders against what transformers itself writes and computes."""

import json
from pathlib import Path

import bitsandbytes
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hubbot.formats.bnb import layout, read
from hubbot.formats.bnb.reader import reader_of
from hubbot.formats.bnb.scales import mean_scales, scales_of
from hubbot.formats.protocol import Cost
from hubbot.model import read_facts
from hubbot.settings import BnbSettings
from tests.conformance.models import write_tiny
from tests.models import make_model
from tests.quantized import bnb_format, bnbs, checkpoint, encode_all, logits, source_of, tokens

KINDS = ["bnb-nf4", "bnb-fp4", "bnb-int8"]


def _on_the_fly(folder: Path, name: str, *, double_quant: bool = True):
    """The model as transformers quantizes it while loading."""
    if name == "bnb-int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=name.removeprefix("bnb-"),
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype="bfloat16",
        )
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    work = tmp_path_factory.mktemp("llama")
    folder = make_model("llama", work / "tiny", tied=False)
    family = bnb_format(folder, KINDS, work / "out")
    return folder, encode_all(family, folder), family.finish()


@pytest.mark.parametrize("name", KINDS)
def test_tensors_and_config_are_those_of_transformers_own_save_pretrained(made, name, tmp_path):
    folder, _, files = made
    model = _on_the_fly(folder, name)
    model.save_pretrained(tmp_path)
    ours, theirs = checkpoint(files[name].paths[0].parent), checkpoint(tmp_path)
    assert set(ours) == set(theirs)
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype, key
        assert torch.equal(ours[key], tensor), key
    assert _quantization(files[name].paths[0].parent) == _quantization(tmp_path)


def _quantization(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize("name", KINDS)
def test_from_pretrained_takes_the_files_as_they_are_and_computes_as_quantized_on_the_fly(made, name):
    folder, _, files = made
    loaded = AutoModelForCausalLM.from_pretrained(files[name].paths[0].parent, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        expected = _on_the_fly(folder, name)(tokens(2, 32)).logits
        assert torch.equal(loaded(tokens(2, 32)).logits, expected)


@pytest.mark.parametrize("name", KINDS)
def test_the_load_check_agrees_with_the_decoded_weights(made, name, tmp_path):
    folder, decoded, files = made
    reference = tmp_path / "reference.safetensors"
    values = {"tokens": tokens(2, 48), "logits": logits(folder, decoded[name]), "first": torch.tensor([0])}
    save_file(values, reference)
    check = read(files[name].paths, reference).check
    assert check.passed, check
    assert check.kld < (1e-2 if name == "bnb-int8" else 1e-3)


@pytest.mark.parametrize("double_quant", [True, False])
def test_weight_bytes_are_known_exactly_and_files_to_a_few_bytes(double_quant, tmp_path):
    folder = make_model("qwen2", tmp_path / "tiny", tied=True)
    settings = BnbSettings(double_quant=double_quant)
    variants = bnbs(KINDS)
    expected = layout.costs(variants, read_facts(folder), source_of(folder), settings)
    family = bnb_format(folder, KINDS, tmp_path / "out", double_quant=double_quant)
    encode_all(family, folder)
    for name, files in family.finish().items():
        cost = expected[name]
        assert isinstance(cost, Cost)
        assert files.weight_bytes == cost.weight_bytes
        size = sum(path.stat().st_size for path in files.paths)
        assert abs(size - cost.file_bytes) <= 64


@pytest.mark.slow
@pytest.mark.parametrize("model", ["LlamaForCausalLM", "GPT2LMHeadModel", "HrmTextForCausalLM"])
def test_mean_scales_are_read_before_anything_is_written_once_and_to_the_bit(model, tmp_path, monkeypatch):
    """Also of transposed layers and of those that are cut out of one tensor."""
    folder = write_tiny(model, tmp_path / "tiny")
    facts, weights = read_facts(folder), checkpoint(folder)
    linears, kept = layout.quantized_linears(facts), tmp_path / "work" / "mean_scales"
    found = mean_scales(facts, linears, torch.device("cpu"), kept)
    assert len(found) == sum(map(len, linears.held.values())) > 0
    for tensor, held in linears.held.items():
        for linear in held:
            _, state = bitsandbytes.functional.quantize_4bit(
                linear.upright(weights[tensor]), blocksize=64, compress_statistics=True, quant_type="nf4"
            )
            assert found[linear.name] == state.offset.item(), linear.name
    monkeypatch.setattr("hubbot.formats.bnb.scales.read_tensor", None)
    assert mean_scales(facts, linears, torch.device("cpu"), kept) == found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 7), (3, 64), (129, 65), (512, 1024)])
def test_scales_are_bitsandbytes_own_whatever_is_left_of_the_last_block(dtype, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    _, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="fp4")
    assert torch.equal(scales_of(weight), state.absmax)


@pytest.mark.parametrize("name", KINDS)
def test_decoded_weights_are_close_to_the_source(made, name):
    folder, decoded, _ = made
    source = checkpoint(folder)
    assert decoded[name]
    for key, weight in decoded[name].items():
        assert weight.dtype == torch.float32
        relative = (weight - source[key].float()).norm() / source[key].float().norm()
        assert relative < {"bnb-nf4": 0.12, "bnb-fp4": 0.2, "bnb-int8": 0.02}[name]


def test_layers_that_are_given_four_dimensions_are_no_int8_and_told_so_in_the_plan(tmp_path) -> None:
    folder = write_tiny("MiniCPM3ForCausalLM", tmp_path)
    variants = bnbs(["bnb-nf4", "bnb-int8"])
    found = layout.costs(variants, read_facts(folder), source_of(folder), BnbSettings())
    assert isinstance(found["bnb-nf4"], Cost)
    assert "is given tensors of more than three dimensions, and bitsandbytes 0.50 stops at those" in str(
        found["bnb-int8"]
    )


def test_a_cpu_with_bfloat16_reads_layers_whose_outputs_its_kernel_cannot_take(tmp_path, monkeypatch) -> None:
    """Such a kernel packs 32 outputs at a time; here is none to compute with, but the packing stops as it does there."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    folder = write_tiny("Qwen3_5ForCausalLM", tmp_path / "tiny")
    family = bnb_format(folder, ["bnb-nf4"], tmp_path / "out")
    encode_all(family, folder)
    made = family.finish()["bnb-nf4"].paths[0].parent
    model = reader_of(made).load(made, "cpu", torch.float32)
    layers = [layer for layer in model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    narrow = [layer for layer in layers if layer.out_features % 32]
    assert 0 < len(narrow) < len(layers)
    with torch.inference_mode():
        for layer in narrow:
            layer(torch.ones(1, layer.in_features))
    assert all(layer.support_avx512bf16_for_cpu is (layer not in narrow) for layer in layers)
