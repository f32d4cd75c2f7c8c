"""What needs a card: the same files and decoded weights as on the CPU."""

from __future__ import annotations

import pytest
import torch

from hubbot.domain import Gguf, Source
from hubbot.errors import SourceRefused
from hubbot.formats.bnb.format import encode_4bit, encode_int8
from hubbot.formats.gguf import agreement, codec
from hubbot.formats.gguf.allocation import NARROW, ggml_name
from hubbot.formats.gguf.allocation import TYPES as TYPES_OF_A_MIX
from hubbot.formats.gguf.blocks import LAYOUTS
from hubbot.formats.gguf.cuda.codec import card_codec
from hubbot.formats.gguf.cuda.program import PROGRAMS
from hubbot.formats.gguf.format import GgufFormat
from hubbot.formats.gguf.probes import rounded
from hubbot.formats.gguf.rounding import curvature_of, round_rows
from hubbot.model import read_facts
from hubbot.settings import GgufSettings
from tests.formats.gguf.chain import parts
from tests.formats.gguf.test_rounding import correlated, ggmls, importance_of, losses, weights
from tests.models import make_model

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA card"), pytest.mark.slow]

CARD = torch.device("cuda:0")
TYPES = ("Q8_0", "Q4_0", "Q4_K_M", "Q6_K", "Q2_K", "IQ4_XS", "BF16", "F16")


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_type_is_used_on_this_card(name):
    assert card_codec(codec.type_named(name), CARD) is not None


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_files_and_decoded_weights_are_the_cpus(architecture, tmp_path):
    source = make_model(architecture, tmp_path / "model")
    found = {device: _made(source, tmp_path / device, torch.device(device)) for device in ("cpu", "cuda:0")}

    for (path, decoded), (other, others) in zip(found["cpu"], found["cuda:0"], strict=True):
        assert path.read_bytes() == other.read_bytes(), path.name
        assert decoded.keys() == others.keys()
        assert all(torch.equal(decoded[name], others[name]) for name in decoded), path.name


def test_weights_beyond_a_type_are_refused_as_on_the_cpu(tmp_path):
    from safetensors.torch import load_file, save_file

    source = make_model("llama", tmp_path / "model")
    file = next(source.glob("*.safetensors"))
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("gate_proj.weight"))
    tensors[name][3, 5] = 3e38
    save_file(tensors, file, {"format": "pt"})

    with pytest.raises(SourceRefused, match="not finite"):
        _made(source, tmp_path / "out", CARD)


@pytest.mark.parametrize("name", [*TYPES_OF_A_MIX, *NARROW])
def test_probes_are_rounded_where_they_lie_to_the_cpus_values(name):
    rows = torch.from_numpy(agreement.plain_rows(512))
    vector = agreement.importance(512)
    found = rounded(rows.to(CARD), name, vector)

    assert card_codec(codec.type_named(ggml_name(name)), CARD) is not None
    assert found.device == CARD
    assert torch.equal(found.cpu(), rounded(rows, name, vector))


def test_a_probe_that_the_card_cannot_weigh_is_left_to_the_cores():
    rows = torch.full((1, 256), 1e30)

    with pytest.raises(ValueError, match="not finite"):
        rounded(rows.to(CARD), "Q8_0", None)


@pytest.mark.parametrize("kind", sorted(LAYOUTS), ids=str)
def test_rounding_by_the_hessian_leaves_as_little_as_on_the_cpu_and_no_row_more_than_ggmls(kind):
    rows, hessian = weights(64, 512), correlated(512)
    importance, found = importance_of(hessian), {}
    for device in (CARD, torch.device("cpu")):
        here = torch.from_numpy(rows).to(device)
        data = round_rows(here, kind, curvature_of(hessian.to(device)), importance)
        found[device.type] = losses(rows, kind, data, hessian)

    assert (found["cuda"] <= losses(rows, kind, ggmls(rows, kind, importance), hessian) * (1 + 1e-4)).all()
    assert torch.allclose(found["cuda"].sum(), found["cpu"].sum(), rtol=0.02)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_the_cpus(kind):
    weight = torch.randn((256, 512), generator=torch.Generator().manual_seed(5)).to(torch.bfloat16)
    ours, theirs = (encode_4bit(w, kind, double_quant=True).named("w") for w in (weight.to(CARD), weight))

    assert all(torch.equal(ours[name].cpu(), value) for name, value in theirs.items())


def test_eight_bits_are_the_cpus():
    weight = torch.randn((256, 512), generator=torch.Generator().manual_seed(5)).to(torch.bfloat16)
    weight[7] = 0
    ours, theirs = encode_int8(weight.to(CARD)), encode_int8(weight)

    assert torch.equal(ours.data.cpu(), theirs.data)
    assert torch.equal(ours.largest.cpu(), theirs.largest)


def _made(folder, out, device):
    """(file, decoded weights on the CPU) of every type."""
    facts = read_facts(folder)
    form = GgufFormat(
        variants=[Gguf(type=name) for name in TYPES],
        source=Source(folder=str(folder), repo=None, revision=None, files={}),
        facts=facts,
        work=out / "work",
        out=out,
        settings=GgufSettings(imatrix=False),
        device=str(device),
    )
    from safetensors import safe_open

    decoded = {name: {} for name in TYPES}
    for part in parts(facts.tensors):
        weights = {}
        for name in part.tensors:
            with safe_open(folder / facts.tensors[name].file, framework="pt") as file:
                weights[name] = file.get_tensor(name).to(device)
        for variant, tensors in form.encode(part, weights, {}).items():
            decoded[variant] |= {name: tensor.decode().cpu() for name, tensor in tensors.items()}
    files = form.finish()
    return [(files[name].paths[0], decoded[name]) for name in TYPES]
