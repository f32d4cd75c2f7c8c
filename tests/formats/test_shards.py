"""Shards: whatever lies in them, wherever it lay, in whatever order it came."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hubbot.errors import Unsupported
from hubbot.formats.shards import TensorSpec, shard_names, split_shards
from hubbot.formats.store import ShardStore

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
    "model.é": torch.ones(3, dtype=torch.uint8),
}
SPECS = [TensorSpec.of(name, tensor) for name, tensor in MIXED.items()]


def laid_out(folder: Path, specs: list[TensorSpec] = SPECS, limit: int = 100) -> ShardStore:
    store = ShardStore(folder, split_shards(specs, limit))
    store.lay_out()
    return store


@pytest.mark.parametrize("limit", [1, 100, 10**6])
def test_shards_filled_in_any_order_have_the_bytes_of_safetensors_own_writer(limit, tmp_path):
    shards = split_shards(SPECS, limit)
    assert len(shards) == {1: len(MIXED), 100: 4, 10**6: 1}[limit]
    store = laid_out(tmp_path / "m.partial", limit=limit)
    names = list(MIXED)
    for part in (names[7:], names[:4], names[4:7], names[:4]):  # the last as after a kill
        store.write({name: MIXED[name] for name in part})
    for file, shard in zip(shard_names(len(shards)), shards, strict=True):
        theirs = tmp_path / "theirs.safetensors"
        save_file({spec.name: MIXED[spec.name].contiguous() for spec in shard}, theirs, {"format": "pt"})
        assert (store.folder / file).read_bytes() == theirs.read_bytes()


def test_only_files_of_the_very_layout_are_taken_up(tmp_path):
    folder = tmp_path / "m.partial"
    assert not ShardStore(folder, split_shards(SPECS, 100)).is_laid_out()
    laid_out(folder).write(MIXED)
    assert ShardStore(folder, split_shards(SPECS, 100)).is_laid_out()
    turned = [TensorSpec(spec.name, spec.dtype, spec.shape[::-1]) for spec in SPECS]  # as many bytes
    for specs, limit in ((SPECS, 150), (SPECS[1:], 100), (turned, 100)):
        assert not ShardStore(folder, split_shards(specs, limit)).is_laid_out()
    second = folder / shard_names(4)[1]
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    assert not ShardStore(folder, split_shards(SPECS, 100)).is_laid_out()
    second.write_bytes(whole)
    assert ShardStore(folder, split_shards(SPECS, 100)).is_laid_out()
    second.unlink()
    assert not ShardStore(folder, split_shards(SPECS, 100)).is_laid_out()


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("model.other", torch.ones(2), r"model.other as F32 \[2\], .* no such tensor"),
        ("model.mlp.qweight", torch.ones(6, 4, dtype=torch.int32), r"I32 \[6, 4\], .* I32 \[4, 6\]"),
        ("model.mlp.qweight", torch.ones(4, 6), r"F32 \[4, 6\], .* I32 \[4, 6\]"),
    ],
    ids=["unknown", "shape", "type"],
)
def test_a_tensor_that_the_files_have_no_room_for_is_refused_before_anything_is_written(name, tensor, told, tmp_path):
    store = laid_out(tmp_path / "m.partial")
    before = [path.read_bytes() for path in sorted(store.folder.iterdir())]
    with pytest.raises(Unsupported, match=told):
        store.write({"model.norm.weight": MIXED["model.norm.weight"], name: tensor})
    assert [path.read_bytes() for path in sorted(store.folder.iterdir())] == before


def test_two_tensors_of_one_name_are_refused(tmp_path):
    with pytest.raises(Unsupported, match=r"Two tensors of m would both be called model\.flag"):
        ShardStore(tmp_path / "m.partial", split_shards([*SPECS, TensorSpec("model.flag", "F32", (2,))], 100))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_lies_on_a_card_is_written_as_it_is(tmp_path):
    large = {"large": torch.randn(5, 2**21 + 3, device="cuda")}  # more than a chunk
    tensors = large | {name: tensor.cuda() for name, tensor in MIXED.items()}
    store = laid_out(tmp_path / "m.partial", [TensorSpec.of(name, tensor) for name, tensor in tensors.items()])
    store.write(tensors)
    written = chain.from_iterable(load_file(path).items() for path in store.folder.iterdir())
    for name, found in written:
        wanted = tensors[name].cpu().contiguous()
        assert torch.equal(found.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8)), name
