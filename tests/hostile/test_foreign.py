"""Crafted artefacts given to `hubbot evaluate`: refused in a sentence, when opened or when decoded."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from hubbot.errors import HubbotError, SourceRefused
from hubbot.formats.foreign import read_artefact
from hubbot.model import TensorInfo, read_facts
from hubbot.model.parts import Part, PartKind
from tests.hostile import model

pytestmark = pytest.mark.slow  # imports transformers

NAME = "lm_head.weight"  # [32, 32]
STEM = NAME.removesuffix(".weight")


@pytest.fixture
def base(tmp_path):
    facts = read_facts(model.write_model(tmp_path / "base"))
    return replace(facts, tensors={NAME: TensorInfo(dtype="F32", shape=(32, 32), file="model.safetensors")})


@pytest.fixture
def decode(tmp_path, base):
    """Open an artefact of the given tensors and decode NAME."""

    def opened(tensors, quantization):
        folder = tmp_path / "artefact"
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        model.config(folder, quantization_config=quantization)
        artefact = read_artefact(folder, base)
        (found,) = artefact.encode(Part(kind=PartKind.HEAD, index=0, tensors=(NAME,)), {}, {}).values()
        return found[NAME].decode()

    return opened


def gptq(**changes):
    """An honest 4-bit layer of 32 x 32 with one group."""
    tensors = {
        "qweight": torch.zeros((4, 32), dtype=torch.int32),
        "qzeros": torch.zeros((1, 4), dtype=torch.int32),
        "scales": torch.ones((1, 32), dtype=torch.float16),
        "g_idx": torch.zeros(32, dtype=torch.int32),
    }
    return {f"{STEM}.{name}": tensor for name, tensor in (tensors | changes).items()}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}


def test_an_honest_layer_is_decoded(decode):
    assert decode(gptq(), GPTQ).tolist() == [[-1.0] * 32] * 32


@pytest.mark.parametrize(
    "changes",
    [
        {"g_idx": torch.full((32,), 7, dtype=torch.int32)},
        {"g_idx": torch.full((32,), -(2**31), dtype=torch.int32)},
        {"g_idx": torch.zeros(3, dtype=torch.int32)},
        {"qweight": torch.zeros((2, 32), dtype=torch.int32)},
        {"qweight": torch.zeros(8, dtype=torch.int32)},
        {"scales": torch.ones((1, 33), dtype=torch.float16)},
        {"qzeros": torch.zeros((1, 0), dtype=torch.int32)},
    ],
)
def test_a_gptq_layer_that_contradicts_itself_is_refused(decode, changes):
    with pytest.raises(SourceRefused, match="of the artefact"):
        decode(gptq(**changes), GPTQ)


@pytest.mark.parametrize("bits", [0, 5, -4, 10**9, "4; rm -rf", None, [4], True])
def test_impossible_bits_are_refused(decode, bits):
    with pytest.raises(SourceRefused, match="bits; GPTQ has 2, 3, 4 or 8"):
        decode(gptq(), GPTQ | {"bits": bits})


@pytest.mark.parametrize("quantization", [{"quant_method": "awq"}, {"quant_method": "x" * 10**6}, ["gptq"], "gptq", 7])
def test_other_methods_are_refused_without_repeating_them_at_length(decode, quantization):
    with pytest.raises(HubbotError) as caught:
        decode(gptq(), quantization)
    assert len(str(caught.value)) < 400


def test_a_missing_companion_is_refused(decode):
    tensors = gptq()
    del tensors[f"{STEM}.scales"]
    with pytest.raises(SourceRefused, match="cannot be decoded"):
        decode(tensors, GPTQ)


def test_a_plain_tensor_of_another_shape_is_refused(decode):
    with pytest.raises(SourceRefused, match=r"\(32, 32\) of the base model is needed"):
        decode({NAME: torch.zeros(4, 16)}, None)


def test_a_bitsandbytes_state_that_is_no_state_is_refused(decode):
    state = {
        f"{NAME}.quant_state.bitsandbytes__nf4": torch.zeros(5, dtype=torch.uint8),
        f"{NAME}.absmax": torch.zeros(1),
        f"{NAME}.quant_map": torch.zeros(16),
    }
    with pytest.raises(SourceRefused, match="cannot be decoded"):
        decode({NAME: torch.zeros((32, 1), dtype=torch.uint8)} | state, {"quant_method": "bitsandbytes"})


def test_tensors_of_another_model_are_refused(decode):
    with pytest.raises(SourceRefused, match="which the base model"):
        decode({"other.weight": torch.zeros(1)}, None)


def test_version_2_stores_zero_points_as_they_are(decode):
    assert decode(gptq(), GPTQ | {"checkpoint_format": "gptq_v2"}).tolist() == [[0.0] * 32] * 32
