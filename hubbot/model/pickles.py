"""Pickle-only checkpoints, for who opts in: read by torch's weights-only loader, rewritten as safetensors.

The loader builds tensors and containers and nothing else. It still is a large parser of strangers'
bytes, which is why it is an option and why it runs in the confined process.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hubbot.errors import SourceRefused, UnsafeSource
from hubbot.model import snapshot
from hubbot.model.companions import is_fetched
from hubbot.model.safetensors import TensorInfo, read_header
from hubbot.model.strict_json import object_of, read_object

__all__ = ["read_pickled_tensors", "unpickle"]

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32"}
_DTYPES |= {"uint8": "U8", "int8": "I8", "bool": "BOOL", "int16": "I16"}


def read_pickled_tensors(files: Mapping[str, Path]) -> dict[str, TensorInfo]:
    """Names, shapes and dtypes of a pickled checkpoint, without its values."""
    return {
        name: TensorInfo(
            dtype=_DTYPES.get(str(tensor.dtype).removeprefix("torch."), "U8"),
            shape=tuple(tensor.shape),
            file=shard,
            size=tensor.numel() * tensor.element_size(),
        )
        for shard in _shards(files)
        for name, tensor in _load(files[shard], device="meta").items()
    }


def unpickle(folder: Path, into: Path) -> Path:
    """Rewrite a pickle-only snapshot as one of safetensors in the new folder `into`; returns it.

    A snapshot that has safetensors is returned as it is. Needs the disk space of the weights again.
    """
    files = snapshot.visible_files(folder)
    if snapshot.SINGLE in files or snapshot.INDEX in files:
        return folder
    import json

    import torch
    from safetensors.torch import save_file

    shards = _shards(files)
    into.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = _load(files[shard], device="cpu")
        # a tensor may be a view of another one, in any order of its dimensions; safetensors stores rows
        own = {
            key: value.clone(memory_format=torch.contiguous_format)
            for key, value in tensors.items()
            if key not in weight_map
        }
        save_file(own, into / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(read_header(into / name), name)
    for name, path in files.items():
        if is_fetched(name):
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, into / name)
    (into / snapshot.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    return into


def _shards(files: Mapping[str, Path]) -> list[str]:
    if SINGLE in files:
        return [SINGLE]
    if INDEX not in files:
        msg = f"Neither safetensors nor {SINGLE} nor {INDEX} is here, so there are no weights to read."
        raise SourceRefused(msg)
    weight_map = object_of(
        read_object(files[INDEX], largest=32 * 2**20, most_values=1_000_000).get("weight_map"), INDEX
    )
    shards = sorted({shard if snapshot.plain_name(shard) else "" for shard in weight_map.values()})
    if missing := [shard for shard in shards if shard not in files]:
        msg = f"{INDEX} names the file {missing[0]!r}, which is not in the model's folder."
        raise UnsafeSource(msg)
    return shards


def _load(path: Path, device: str) -> dict[str, Any]:
    import torch

    try:
        values = torch.load(path, map_location=device, mmap=True, weights_only=True)
    except Exception as error:
        msg = f"torch's weights-only loader refuses {path.name}: {str(error).splitlines()[0][:200]}. Ask the author for safetensors."
        raise UnsafeSource(msg) from error
    found = dict(_tensors(values)) if isinstance(values, Mapping) else {}
    if not found:
        msg = f"{path.name} holds no mapping of names to tensors. Ask the author for safetensors."
        raise UnsafeSource(msg)
    return found


def _tensors(values: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    import torch

    for name, value in values.items():
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            yield name, value
