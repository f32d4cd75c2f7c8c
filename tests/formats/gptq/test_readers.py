"""GPTQ folders in readers that hubbot did not write: GPTQModel, alone and behind transformers."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubbot.formats.gptq import measure_speed, read
from hubbot.formats.linears import find_linears
from hubbot.model import read_facts
from tests.models import make_model
from tests.quantized import encode_all, gptq_format, logits, tokens
from tests.tiers import suite

pytestmark = pytest.mark.slow

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
NAMES = [
    "gptq-2bit-64g",
    "gptq-3bit-128g",
    "gptq-3bit-64g-asym",
    "gptq-4bit-128g",
    "gptq-4bit-32g-actorder",
    "gptq-4bit-16g-asym",
    "gptq-8bit--1g",
    "gptq-8bit-256g-actorder-asym",
]


def _reference(folder: Path, decoded: dict[str, torch.Tensor], path: Path) -> Path:
    save_file(
        {"tokens": tokens(2, 48), "logits": logits(folder, decoded)[:, 8:].contiguous(), "first": torch.tensor([8])},
        path,
    )
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    work = tmp_path_factory.mktemp("llama")
    folder = make_model("llama", work / "tiny", tied=False)
    family = gptq_format(folder, NAMES, work / "out")
    return folder, encode_all(family, folder), family.finish()


@pytest.mark.parametrize("name", suite(NAMES, first=5))
def test_gptqmodel_decodes_every_weight_to_exactly_ours(made, name):
    from gptqmodel import BACKEND, GPTQModel

    folder, decoded, files = made
    path = str(files[name].paths[0].parent)
    model = GPTQModel.load(path, device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16)
    linears = find_linears(read_facts(folder)).blocks
    assert linears
    for linear in linears:
        theirs = model.model.get_submodule(linear.module).dequantize_weight().T.float()
        assert torch.equal(theirs, decoded[name][linear.name]), linear.name


def test_scales_mean_the_same_to_readers_that_compute_in_bfloat16(made):
    _, _, files = made
    for name in NAMES:
        folder = files[name].paths[0].parent
        scales = [value for key, value in load_file(folder / "model.safetensors").items() if key.endswith(".scales")]
        assert scales
        for scale in scales:
            assert torch.equal(scale.to(torch.bfloat16).to(torch.float16), scale)


@pytest.mark.parametrize("name", suite(NAMES, first=5))
def test_transformers_computes_the_logits_of_the_decoded_weights(made, name, tmp_path):
    folder, decoded, files = made
    check = read(files[name].paths, _reference(folder, decoded[name], tmp_path / "reference.safetensors")).check
    assert check.passed, check
    assert check.kld < 1e-5  # float32 on both sides, sums in another order
    assert check.generated
    assert check.tokenizer
    assert check.chat_template


@pytest.mark.parametrize("family", suite(["phi3", "gemma3", "qwen2", "gpt_neox", "cohere2"], first=2))
def test_biases_fused_projections_and_tied_heads_survive(family, tmp_path):
    folder = make_model(family, tmp_path / "tiny")
    made = gptq_format(folder, ["gptq-4bit-64g"], tmp_path / "out")
    decoded = encode_all(made, folder)["gptq-4bit-64g"]
    files = made.finish()["gptq-4bit-64g"]
    check = read(files.paths, _reference(folder, decoded, tmp_path / "reference.safetensors")).check
    assert check.passed, check
    assert check.kld < 1e-4


def test_a_file_with_two_scales_exchanged_fails_the_check(made, tmp_path):
    folder, decoded, files = made
    name = "gptq-4bit-128g"
    for path in files[name].paths:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    key = next(key for key in tensors if key.endswith("layers.0.mlp.down_proj.scales"))
    tensors[key] = tensors[key].flip(1).contiguous()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    reference = _reference(folder, decoded[name], tmp_path / "reference.safetensors")
    check = read([tmp_path / path.name for path in files[name].paths], reference).check
    assert check.loaded
    assert not check.passed
    assert check.kld > check.tolerance


def test_a_broken_file_is_a_verdict_not_an_exception(made, tmp_path):
    _, _, files = made
    for path in files["gptq-4bit-128g"].paths:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
    check = read([tmp_path / path.name for path in files["gptq-4bit-128g"].paths], None).check
    assert not check.loaded
    assert not check.passed
    assert check.error


def test_prompts_are_continued_and_speed_is_measured(made):
    _, _, files = made
    paths = files["gptq-4bit-128g"].paths
    reading = read(paths, None, prompts=[[5, 6, 7], [9, 10]], new_tokens=4)
    assert [len(tokens) <= 4 for tokens in reading.continuations] == [True, True]
    assert reading.continuations[0]
    speed = measure_speed(paths, prompt_tokens=32, generated_tokens=4, device="cpu")
    assert speed.prompt_tokens_per_second > 0
    assert speed.generation_tokens_per_second > 0
    assert speed.peak_memory > 10**8
