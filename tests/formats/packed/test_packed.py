"""compressed-tensors folders: the solver's codes in another container, read by compressed-tensors itself."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubbot.formats import packed
from hubbot.formats.gptq import sharing
from hubbot.formats.gptq.solver import solve_together
from tests.models import make_model
from tests.quantized import encode_all, gptq_format, logits, packed_format, statistics, tokens

pytestmark = pytest.mark.slow

TWINS = {"w4a16-128g": "gptq-4bit-128g", "w8a16--1g": "gptq-8bit--1g", "w4a16-64g-asym": "gptq-4bit-64g-asym"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The model, decoded weights and files of both containers, and how often the solver ran."""
    work = tmp_path_factory.mktemp("packed")
    folder = make_model("llama", work / "tiny", tied=False)
    seen = statistics(folder)
    runs: list[object] = []

    def counted(weights, *words):
        runs.extend(weights)
        return solve_together(weights, *words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "solve_together", counted)
        first, second = (
            gptq_format(folder, [*TWINS.values()], work / "out"),
            packed_format(folder, [*TWINS], work / "out"),
        )
        decoded = encode_all(first, folder, seen) | encode_all(second, folder, seen)
    return folder, decoded, {**first.finish(), **second.finish()}, runs


def test_a_layout_that_both_containers_hold_is_solved_once(made) -> None:
    _, decoded, _, runs = made
    assert len(runs) == sum(len(decoded[name]) for name in TWINS)
    for name, twin in TWINS.items():
        assert all(torch.equal(decoded[name][tensor], decoded[twin][tensor]) for tensor in decoded[twin])


@pytest.mark.parametrize("name", TWINS)
def test_compressed_tensors_unpacks_exactly_our_codes_and_zero_points(made, name) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    _, decoded, files, _ = made
    folder = files[name].paths[0].parent
    stored = load_file(folder / "model.safetensors")
    weights = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"][
        "weights"
    ]
    bits = weights["num_bits"]
    stems = [key.removesuffix(".weight_packed") for key in stored if key.endswith(".weight_packed")]
    assert stems
    for stem in stems:
        shape = torch.Size(stored[f"{stem}.weight_shape"].tolist())
        scale = stored[f"{stem}.weight_scale"].float()
        codes = unpack_from_int32(stored[f"{stem}.weight_packed"], bits, shape).float()
        if f"{stem}.weight_zero_point" in stored:
            zeros = stored[f"{stem}.weight_zero_point"]
            zero = unpack_from_int32(zeros, bits, torch.Size((shape[0], scale.shape[1])), packed_dim=0).float()
            codes = codes - zero.repeat_interleave(shape[1] // scale.shape[1], 1)
        weight = (codes * scale.repeat_interleave(shape[1] // scale.shape[1], 1)).to(torch.float16).float()
        assert torch.equal(weight, decoded[name][f"{stem}.weight"]), stem


@pytest.mark.parametrize("name", TWINS)
def test_transformers_computes_the_logits_of_the_decoded_weights(made, name, tmp_path) -> None:
    folder, decoded, files, _ = made
    reference = tmp_path / "reference.safetensors"
    found = logits(folder, decoded[name])[:, 8:].contiguous()
    save_file({"tokens": tokens(2, 48), "logits": found, "first": torch.tensor([8])}, reference)
    check = packed.read(files[name].paths, reference).check
    assert check.passed, check
    assert check.kld < 1e-5
    assert "compressed-tensors" in check.runtime
