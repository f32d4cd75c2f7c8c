"""Part files: whatever lies in them, and wherever it lay."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubbot.formats.shards import read_metadata, read_specs, save_part

MIXED = {
    "model.norm.weight": torch.randn(7, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "model.mlp.qweight": torch.arange(24, dtype=torch.int32).reshape(4, 6),
    "model.mlp.scales": torch.ones(3, 5, dtype=torch.float16),
    "model.fp8": torch.ones(2, 2).to(torch.float8_e4m3fn),
    "model.powers": torch.ones(2, 2).to(torch.float8_e8m0fnu),
    "model.angles": torch.ones(2, 2, dtype=torch.complex64),
    "model.wide": torch.ones(2, 2, dtype=torch.float64),
    "model.whole": torch.tensor(3, dtype=torch.int64),
    "model.turned": torch.arange(6, dtype=torch.float32).reshape(2, 3).t(),
    "model.flag": torch.tensor([True, False]),
    "model.nothing": torch.empty(0, 4),
}


def test_a_part_has_the_bytes_of_safetensors_own_writer(tmp_path):
    save_part(MIXED, tmp_path / "part.safetensors", {"hubbot": '{"covers": ["é"]}'})
    ours = {name: tensor.contiguous() for name, tensor in MIXED.items()}
    save_file(ours, tmp_path / "theirs.safetensors", {"hubbot": '{"covers": ["é"]}'})
    assert (tmp_path / "part.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_part_says_what_it_was_given(tmp_path):
    save_part(MIXED, tmp_path / "part.safetensors", {"hubbot": "remarks"})
    assert read_metadata(tmp_path / "part.safetensors") == {"hubbot": "remarks"}
    assert {spec.name: spec.shape for spec in read_specs(tmp_path / "part.safetensors")} == {
        name: tuple(tensor.shape) for name, tensor in MIXED.items()
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_lies_on_a_card_is_written_as_it_is(tmp_path):
    large = {"large": torch.randn(5, 2**21 + 3, device="cuda")}  # more than a chunk
    tensors = large | {name: tensor.cuda() for name, tensor in MIXED.items()}
    save_part(tensors, tmp_path / "part.safetensors", {})
    for name, found in load_file(tmp_path / "part.safetensors").items():
        wanted = tensors[name].cpu().contiguous()
        assert torch.equal(found.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8)), name
