"""Models that their authors released quantized are read as transformers and llama.cpp read them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from hubbot import llamacpp
from hubbot.child.source import facts_of
from hubbot.domain import Source
from hubbot.errors import SourceRefused, UnsafeSource
from hubbot.formats.samples import continue_base, greedy
from hubbot.model import check_finite, part_layout, read_facts
from hubbot.model.agreement import agreed
from hubbot.model.safetensors import Coded, TensorInfo
from hubbot.model.weights import decode, read_tensor
from hubbot.settings import load_settings
from tests.formats.gguf.chain import convert, keys_and_tensors, open_format
from tests.released import configure, decoded_folder, release_compressed, release_fp8, release_mxfp4, release_w4a16
from tests.sweep.test_architectures import perplexity, perplexity_of, run


@pytest.fixture(scope="module")
def fp8(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release_fp8(tiny_model("llama"), tmp_path_factory.mktemp("released") / "fp8")


@pytest.fixture(scope="module")
def theirs(fp8: Path) -> torch.nn.Module:
    """The model as transformers loads and decodes it."""
    return AutoModelForCausalLM.from_pretrained(fp8, dtype=torch.bfloat16).eval()


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: read_tensor(folder, name, info) for name, info in read_facts(folder).tensors.items()}


def edited(folder: Path, into: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    shutil.copytree(folder, into)
    tensors = load_file(into / "model.safetensors")
    edit(tensors)
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    return into


def refusal(folder: Path) -> str:
    with pytest.raises((SourceRefused, UnsafeSource)) as caught:
        check_finite(folder, agreed(read_facts(folder)))
    return str(caught.value)


QUERY = "model.layers.0.self_attn.q_proj.weight"


def test_fp8_weights_are_those_that_transformers_decodes(fp8, theirs):
    ours = read_all(fp8)
    assert all(torch.equal(value, ours[name]) for name, value in theirs.state_dict().items())
    assert ours.keys() == theirs.state_dict().keys()
    assert {tensor.dtype for tensor in ours.values()} == {torch.bfloat16}


def test_the_facts_are_of_the_decoded_model(fp8, tiny_model):
    ours, plain = agreed(read_facts(fp8)), agreed(read_facts(tiny_model("llama")))
    assert ours.config == plain.config
    assert ours.parameters == plain.parameters
    assert ours.decoded_bytes == plain.decoded_bytes == plain.weight_bytes
    assert ours.weight_bytes == sum(
        tensor.nbytes for tensor in load_file(fp8 / "model.safetensors").values()
    )  # that are fetched
    assert ours.released_as == "FP8"
    assert ours.notes == ("made from FP8 weights: 14 tensors are decoded to bfloat16",)


@pytest.mark.slow
def test_perplexity_of_the_base_is_that_of_transformers_on_the_decoded_model(fp8, theirs, tmp_path):
    result, _ = run(fp8, tmp_path)
    assert result.base.perplexity == pytest.approx(perplexity_of(theirs.float()), rel=1e-6)


@pytest.mark.slow
def test_what_the_base_says_is_what_the_decoded_model_says(fp8, tmp_path):
    weights = read_all(fp8)
    plain = decoded_folder(fp8, weights, tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    prompts = [[1, 5, 9], [1, 44]]
    said = continue_base(fp8, prompts, [2], torch.device("cpu"))
    assert said == greedy(model, prompts, 48, [2])


@pytest.mark.slow
def test_a_gguf_of_fp8_weights_is_the_file_of_the_decoded_folder_and_llama_cpps_own(fp8, tmp_path):
    weights = read_all(fp8)
    plain = decoded_folder(fp8, weights, tmp_path / "plain")
    paths = {}
    for folder in (fp8, plain):
        form = open_format(folder, ["BF16", "Q4_K_M"], tmp_path / f"out-{folder.name}")
        for part in part_layout(read_facts(folder)):
            form.encode(part, {name: weights[name] for name in part.tensors}, {})
        paths[folder] = {name: keys_and_tensors(made.paths[0]) for name, made in form.finish().items()}
    assert [tensors for _, tensors in paths[fp8].values()] == [tensors for _, tensors in paths[plain].values()]
    converted = keys_and_tensors(convert(fp8, tmp_path / "theirs.gguf"))
    assert paths[fp8]["BF16"][1] == converted[1]


def test_blocks_at_the_edges_are_cut_off_as_llama_cpp_cuts_them():
    codes = torch.randn(300, 200).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 2)
    info = TensorInfo(dtype="F32", shape=(3, 2), file="")
    found = decode(codes, scales, Coded(codes="", scale="", scales=info, block=(128, 128)))
    assert found[299, 199] == (codes[299, 199].float() * scales[2, 1]).bfloat16()
    assert found[127, 128] == (codes[127, 128].float() * scales[0, 1]).bfloat16()


def test_one_scale_a_matrix_and_scales_of_activations(tiny_model, tmp_path):
    folder = release_fp8(tiny_model("llama"), tmp_path / "fp8", block=None, activations=True)
    stored = load_file(folder / "model.safetensors")
    expected = stored[QUERY].float() * stored[f"{QUERY}_scale_inv"]
    facts = agreed(read_facts(folder))
    assert torch.equal(read_tensor(folder, QUERY, facts.tensors[QUERY]), expected.bfloat16())
    assert facts.notes == (
        "made from FP8 weights: 14 tensors are decoded to bfloat16; 14 scales of activations are left out, for activations are not rounded here",
    )


@pytest.mark.parametrize("strategy", ["channel", "tensor"])
def test_compressed_tensors_fp8_is_what_its_own_package_decodes(tiny_model, tmp_path, strategy):
    folder = release_compressed(tiny_model("llama"), tmp_path / "fp8", strategy)
    stored = load_file(folder / "model.safetensors")
    facts = agreed(read_facts(folder))
    told = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    expected = dequantize(
        stored[QUERY], stored[f"{QUERY}_scale"], args=QuantizationArgs.model_validate(told["weights"])
    )
    assert torch.equal(read_tensor(folder, QUERY, facts.tensors[QUERY]), expected.bfloat16())
    assert (facts.released_as, facts.config) == ("FP8", read_facts(tiny_model("llama")).config)


def test_w4a16_is_what_compressed_tensors_itself_decodes(tiny_model, tmp_path):
    folder = release_w4a16(tiny_model("llama"), tmp_path / "w4a16")
    stored = load_file(folder / "model.safetensors")
    facts = agreed(read_facts(folder))
    told = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
    codes = unpack_from_int32(stored[f"{QUERY}_packed"], 4, torch.Size(facts.tensors[QUERY].shape))
    expected = dequantize(codes, stored[f"{QUERY}_scale"], args=QuantizationArgs.model_validate(told["weights"]))
    assert torch.equal(read_tensor(folder, QUERY, facts.tensors[QUERY]), expected.bfloat16())
    assert facts.tensors.keys() == read_facts(tiny_model("llama")).tensors.keys()
    assert facts.notes == ("made from W4A16 weights: 14 tensors are decoded to bfloat16",)


def test_what_somebody_made_of_an_original_is_refused_unless_forced(tiny_model, tmp_path):
    source = Source(
        folder=str(release_w4a16(tiny_model("llama"), tmp_path / "w4a16")), repo=None, revision=None, files={}
    )
    with pytest.raises(SourceRefused, match=r"already quantized \(W4A16.*--force"):
        facts_of(source, load_settings(None, {}), tmp_path)
    assert facts_of(source, load_settings(None, {"force": True}), tmp_path).released_as == "W4A16"


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda stored: stored.pop(f"{QUERY}_scale"), "its scales are not"),
        (lambda stored: stored.update({f"{QUERY}_g_idx": torch.zeros(256, dtype=torch.int32)}), "beside .*_g_idx"),
        (lambda stored: stored.update({f"{QUERY}_scale": torch.ones(2, 2)}), "with the shape"),
        (lambda stored: stored.update({f"{QUERY}_packed": torch.ones(256, 32)}), "is stored as F32"),
    ],
)
def test_w4a16_that_does_not_fit_together_is_a_sentence(tiny_model, tmp_path, edit, told):
    whole = release_w4a16(tiny_model("llama"), tmp_path / "w4a16")
    with pytest.raises(SourceRefused, match=told):
        read_facts(edited(whole, tmp_path / "broken", edit))


@pytest.mark.slow
@pytest.mark.parametrize("release", [release_fp8, release_w4a16])
def test_a_mixture_released_quantized_passes_the_sweep_as_its_decoded_weights(tiny_model, tmp_path, release):
    folder = release(tiny_model("qwen3_moe"), tmp_path / "released")
    weights = read_all(folder)
    assert sum(".experts." in name for name, info in read_facts(folder).tensors.items() if info.coded) == 24
    result, _ = run(folder, tmp_path / "run")
    plain = decoded_folder(folder, weights, tmp_path / "plain")
    assert result.base.perplexity == pytest.approx(perplexity(plain), rel=1e-6)


@pytest.fixture(scope="module")
def mxfp4(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release_mxfp4(tiny_model("gpt_oss"), tmp_path_factory.mktemp("released") / "mxfp4")


def test_mxfp4_weights_are_those_that_transformers_decodes(mxfp4):
    ours, stored = read_all(mxfp4), load_file(mxfp4 / "model.safetensors")
    names = [name.removesuffix("_blocks") for name in stored if name.endswith("_blocks")]
    assert len(names) == 4
    for name in names:
        expected = convert_moe_packed_tensors(stored[f"{name}_blocks"], stored[f"{name}_scales"])
        assert torch.equal(ours[name], expected)
    assert agreed(read_facts(mxfp4)).notes == ("made from MXFP4 weights: 4 tensors are decoded to bfloat16",)


@pytest.mark.slow
def test_perplexity_of_an_mxfp4_base_is_that_of_transformers_on_the_decoded_model(mxfp4, tmp_path):
    result, _ = run(mxfp4, tmp_path / "run")
    plain = decoded_folder(mxfp4, read_all(mxfp4), tmp_path / "plain")
    assert result.base.perplexity == pytest.approx(perplexity(plain), rel=1e-6)


@pytest.mark.slow
def test_mxfp4_moe_of_an_mxfp4_original_holds_its_very_values(mxfp4, tmp_path):
    form = open_format(mxfp4, ["MXFP4_MOE"], tmp_path / "out")
    weights = read_all(mxfp4)
    for part in part_layout(read_facts(mxfp4)):
        form.encode(part, {name: weights[name] for name in part.tensors}, {})
    ours = experts_in(form.finish()["MXFP4_MOE"].paths[0])
    theirs = experts_in(convert(mxfp4, tmp_path / "theirs.gguf"))  # which moves the codes over as they are
    assert len(ours) == 6
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def experts_in(path: Path) -> dict[str, Any]:
    """Name -> decoded weights of what is stored in MXFP4."""
    gguf = llamacpp.gguf()
    from gguf.quants import dequantize as decoded

    found = gguf.GGUFReader(path).tensors
    return {each.name: decoded(each.data, each.tensor_type) for each in found if each.tensor_type.name == "MXFP4"}


# --- what does not go together --------------------------------------------------------------------------


def test_codes_without_scales_are_refused(fp8, tmp_path):
    folder = edited(fp8, tmp_path / "lost", lambda tensors: tensors.pop(f"{QUERY}_scale_inv"))
    assert f"neither {QUERY}_scale_inv nor {QUERY}_scale is there" in refusal(folder)


def test_scales_of_another_shape_are_refused(fp8, tmp_path):
    folder = edited(fp8, tmp_path / "other", lambda tensors: tensors.update({f"{QUERY}_scale_inv": torch.ones(2, 1)}))
    assert "with the shape [2, 1]; floating point with the shape [2, 2] is needed" in refusal(folder)


def test_a_code_that_is_no_number_is_refused(fp8, tmp_path):
    def spoil(tensors):
        tensors[QUERY].view(torch.uint8)[3, 5] = 0x7F

    assert f"{QUERY} in model.safetensors holds a value at [3, 5]" in refusal(edited(fp8, tmp_path / "nan", spoil))


def test_products_beyond_float16_are_told(fp8, tmp_path):
    def raise_scale(tensors):
        tensors[f"{QUERY}_scale_inv"][1, 1] = 1e6

    folder = edited(fp8, tmp_path / "large", raise_scale)
    assert list(check_finite(folder, agreed(read_facts(folder)))) == [QUERY]


def test_mxfp4_codes_without_scales_are_refused(mxfp4, tmp_path):
    name = "model.layers.0.mlp.experts.down_proj"
    folder = edited(mxfp4, tmp_path / "lost", lambda tensors: tensors.pop(f"{name}_scales"))
    assert f"{name}_blocks is stored as U8 [4, 256, 8, 16] and {name}_scales as nothing" in refusal(folder)


@pytest.mark.parametrize("weights", [{"num_bits": 4, "type": "int"}, {"num_bits": 4, "type": "float"}, None, "float"])
def test_what_is_made_of_an_original_is_refused(fp8, tmp_path, weights):
    shutil.copytree(fp8, tmp_path / "made")
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    configure(tmp_path / "made", {"quant_method": "compressed-tensors", "config_groups": groups})
    assert "already quantized ('compressed-tensors' in config.json)" in refusal(tmp_path / "made")


@pytest.mark.parametrize("method", ["bitsandbytes", "awq", "fp8", "mxfp4", None])
def test_whole_weights_under_a_configuration_of_codes_are_taken_as_they_are(method, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "left")
    configure(folder, {"quant_method": method, "load_in_4bit": True})
    facts = agreed(read_facts(folder))
    assert facts.released_as is None
    assert "quantization_config" not in facts.config
    assert f"speaks of quantized weights ({method or 'quantization_config'})".lower() in facts.notes[0].lower()
    assert len(facts.notes) == 1
    assert all(info.coded is None for info in facts.tensors.values())


def test_whole_weights_that_a_model_rounds_on_its_way_are_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "trained")
    configure(folder, {"quant_method": "bitnet", "quantization_mode": "online", "linear_class": "autobitlinear"})
    assert "computes with its weights rounded to three values (quant_method bitnet)" in refusal(folder)


@pytest.mark.parametrize("block", [[0, 128], [128], "128", [128.0, 128], [2**40, 1]])
def test_absurd_blocks_are_refused(fp8, tmp_path, block):
    shutil.copytree(fp8, tmp_path / "absurd")
    configure(tmp_path / "absurd", {"quant_method": "fp8", "weight_block_size": block})
    assert "weight_block_size of config.json must be two whole numbers" in refusal(tmp_path / "absurd")


def test_codes_whose_configuration_was_lost_are_refused(fp8, tmp_path):
    shutil.copytree(fp8, tmp_path / "lost")
    config = json.loads((fp8 / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "lost" / "config.json").write_text(json.dumps(config))
    assert "is stored as F8_E4M3" in refusal(tmp_path / "lost")


def test_mxfp4_whose_configuration_was_lost_is_told_as_codes(mxfp4, tmp_path):
    shutil.copytree(mxfp4, tmp_path / "lost")
    config = json.loads((mxfp4 / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "lost" / "config.json").write_text(json.dumps(config))
    assert "_blocks is stored as U8, as codes of a quantization are, and config.json has no" in refusal(
        tmp_path / "lost"
    )
