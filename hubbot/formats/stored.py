"""A finished checkpoint folder, made anywhere: its tensors as they are stored, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubbot.model import snapshot
from hubbot.model.config import read_values
from hubbot.model.strict_json import object_of

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "Plain", "quantization_of"]


def quantization_of(path: Path) -> dict[str, Any]:
    """What config.json says of a folder's quantization; nothing where it says nothing, or there is no folder."""
    if not path.is_dir():
        return {}
    files = snapshot.visible_files(path)
    config = read_values(files["config.json"]) if "config.json" in files else {}
    return dict(object_of(config.get("quantization_config") or {}, "quantization_config of config.json"))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """files: tensor -> name of its safetensors."""

    folder: Path
    files: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> Checkpoint:
        tensors = snapshot.read_tensors(snapshot.visible_files(folder))
        return cls(folder, {name: info.file for name, info in tensors.items()})

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self.folder / self.files[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor.clone()  # a view would keep its whole file mapped


@dataclass(frozen=True, slots=True)
class Plain:
    """A tensor that is stored unquantized."""

    checkpoint: Checkpoint
    name: str

    def decode(self) -> torch.Tensor:
        return self.checkpoint[self.name].float()
