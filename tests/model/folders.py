"""Folders of a tiny model that differ from it in one thing, as published ones do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def copied(folder: Path, into: Path) -> Path:
    return shutil.copytree(folder, into / folder.name)


def change(path: Path, **keys: Any) -> None:
    """Set keys of a JSON file, which is made where it is missing; None removes one."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = {key: value for key, value in {**found, **keys}.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def rewrite(folder: Path, edit: Callable[[Tensors], Tensors | None]) -> None:
    """Store other tensors: `edit` changes them in place or returns them."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edited = edit(tensors)
    save_file(tensors if edited is None else edited, path, metadata={"format": "pt"})
