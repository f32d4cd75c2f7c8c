"""A GGUF made elsewhere, read as the checkpoint that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hubbot import llamacpp
from hubbot.errors import SourceRefused, Unsupported
from hubbot.formats.gguf import codec
from hubbot.formats.gguf.converter import Captured, convert
from hubbot.formats.gguf.decoded import DecodedTensor
from hubbot.formats.gguf.naming import shards_of
from hubbot.formats.gguf.origins import Origins, decoded_tensor
from hubbot.formats.gguf.plan import Facts
from hubbot.formats.gguf.snapshot import Snapshot
from hubbot.model.foreign import foreign
from hubbot.model.gguf import read_gguf_header

__all__ = ["read_gguf_as_checkpoint"]


def read_gguf_as_checkpoint(path: Path, facts: Facts) -> dict[str, DecodedTensor]:
    """Checkpoint name -> decoded tensor, for every tensor that the file holds row by row.

    path: a GGUF, or one of its shards. facts: the base model's, on disk. Tensors whose values the
    converter changes (norms that it adds 1 to) are left out: they stay the base's.
    Raises Unsupported where the file is no GGUF of that base.
    """
    snapshot = Snapshot(facts)
    model = convert(Path(facts.folder), facts.tensors, snapshot.read)
    found = _open(path)
    _refuse_strangers(path, {tensor.name: tensor for tensor in model.tensors}, found)
    origins = Origins(model, facts.tensors)

    def place(tensor: Captured) -> tuple[int, Callable[[], torch.Tensor]]:
        seen = found[tensor.name]
        return int(seen.tensor_type), lambda: torch.from_numpy(np.array(seen.data).reshape(-1).view(np.uint8))

    decoded = {}
    for name, fact in facts.tensors.items():
        holders = origins.holders(name)
        if holders:
            weight = _when_needed(snapshot, name, tuple(fact.shape), sum(held.tensor.rows for held in holders))
            decoded[name] = decoded_tensor(tuple(fact.shape), holders, place, weight, torch.device("cpu"))
    return decoded


def _when_needed(snapshot: Snapshot, name: str, shape: tuple[int, ...], held: int) -> torch.Tensor | None:
    return snapshot.read(name) if held < int(np.prod(shape[:-1])) else None


def _open(path: Path) -> dict[str, Any]:
    """GGUF name -> gguf.ReaderTensor, over all shards."""
    reader = llamacpp.gguf().GGUFReader
    tensors: dict[str, Any] = {}
    for shard in shards_of(path):
        read_gguf_header(shard)  # our own strict reader first: strangers wrote this file
        with foreign("gguf-py", f"read {shard.name}", then="Download it again, or name another file."):
            tensors |= {tensor.name: tensor for tensor in reader(shard).tensors}
    return tensors


def _refuse_strangers(path: Path, model: Mapping[str, Captured], found: Mapping[str, Any]) -> None:
    for name, tensor in model.items():
        seen: Any = found.get(name)
        shape = None if seen is None else tuple(int(size) for size in reversed(seen.shape.tolist()))
        if shape != tensor.shape:
            what = "has no such tensor" if shape is None else f"has it as {list(shape)}"
            msg = f"{path.name} is no GGUF of this base model: {name} should be {list(tensor.shape)}, the file {what}. Name the model it was made from."
            raise Unsupported(msg)
        try:
            codec.row_bytes(int(seen.tensor_type), tensor.columns)
        except ValueError as error:
            msg = f"{path.name}: {name}: {error}. The file is damaged."
            raise SourceRefused(msg) from error
