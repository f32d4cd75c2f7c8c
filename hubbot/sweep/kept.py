"""What a pass forth and back keeps on the disk: the blocks' inputs, how far it is, and the bands it is made for."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hubbot.formats.protocol import Band
from hubbot.model.parts import Part
from hubbot.sweep.group import Group
from hubbot.sweep.mapped import mapped

__all__ = ["NOTHING", "Kept", "bands_of"]

_KEPT = torch.bfloat16  # of the blocks' inputs: the gradients' means are over far fewer tokens than would show it
NOTHING = torch.empty(0)  # the gradient before the head
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Kept:
    """The folder of a pass that is not done yet.

    shape: of a block's inputs, [windows, length, width]. Nothing is flushed to the disk: what a killed process has written
    is there, and what a machine that went down has left is told by its boot and thrown away.
    """

    def __init__(self, folder: Path, shape: Sequence[int], group: Group) -> None:
        self._folder, self._shape, self._group = folder, tuple(shape), group
        self._started = time.monotonic()
        self.seconds = 0.0  # that earlier processes have spent on it

    def taken_up(self) -> tuple[int, torch.Tensor]:
        """How many steps of the pass are done, and the gradient that they have come to; all begins anew where that is not
        the same in every process of the group.
        """
        found = self._state()
        if len({done for done, *_ in self._group.all_gather((found[0], found[2]))}) > 1 or not found[0]:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            return 0, NOTHING
        done, gradient, self.seconds = found
        return done, gradient

    def step(self, done: int, gradient: torch.Tensor) -> None:
        """So many steps are done. gradient: float32, from the head on."""
        state = {
            "done": done,
            "shape": self._shape,
            "boot": _boot(),
            "seconds": self.seconds + time.monotonic() - self._started,
        }
        partial = self._path("state.partial")
        save_file({"gradient": gradient}, partial, {"state": json.dumps(state)})
        partial.replace(self._path("state"))

    def inputs(self, number: int) -> torch.Tensor:
        """Of a block, mapped from a file. Raises OSError where the disk has no room for it."""
        return mapped(self._path(f"inputs.{number}"), self._shape, _KEPT, written=True)

    def drop(self, number: int) -> None:
        self._path(f"inputs.{number}").unlink(missing_ok=True)

    def keep_bands(self, part: Part, bands: Mapping[str, tuple[Band, ...]]) -> None:
        """Correlations in float16, which ends far below what the solver's damping leaves of them."""
        sets = list({id(some): some for some in bands.values()}.values())
        tensors: dict[str, torch.Tensor] = {}
        for number, some in enumerate(sets):
            for place, band in enumerate(some):
                deviation = band.matrix.diagonal().sqrt()
                divisor = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
                tensors[f"{number}.{place}.deviation"] = deviation.cpu()
                tensors[f"{number}.{place}.correlation"] = (band.matrix / divisor / divisor[:, None]).half().cpu()
        rows = [[{name: (own.start, own.stop) for name, own in band.rows.items()} for band in some] for some in sets]
        save_file(tensors, self._path(_file(part)), {"bands": json.dumps(rows)})

    def finish(self, folder: Path) -> None:
        """The bands are all there; nothing else is needed of it."""
        for path in (self._path("state"), *self._folder.glob("inputs.*")):
            path.unlink()
        shutil.rmtree(self._folder / "companions", ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)  # where only some processes of the group had one
        self._folder.replace(folder)

    def forget(self) -> None:
        """The pass cannot be made."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _state(self) -> tuple[int, torch.Tensor, float]:
        path = self._path("state")
        if not path.exists():
            return 0, NOTHING, 0.0
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            if state["boot"] != _boot() or tuple(state["shape"]) != self._shape:
                return 0, NOTHING, 0.0
            return state["done"], file.get_tensor("gradient").clone(), state["seconds"]

    def _path(self, name: str) -> Path:
        return self._folder / name


def bands_of(folder: Path, part: Part, device: torch.device) -> dict[str, tuple[Band, ...]]:
    """Of a finished pass: checkpoint name of a layer's weight -> the bands of all layers with its inputs."""
    path = folder / _file(part)
    if not path.exists():
        return {}
    with safe_open(path, framework="pt") as file:
        found: dict[str, tuple[Band, ...]] = {}
        for number, bands in enumerate(json.loads(file.metadata()["bands"])):
            own = []
            for place, rows in enumerate(bands):
                deviation = file.get_tensor(f"{number}.{place}.deviation").to(device)
                matrix = file.get_tensor(f"{number}.{place}.correlation").to(device).float()
                matrix.mul_(deviation).mul_(deviation[:, None])
                own.append(Band(rows={name: slice(*ends) for name, ends in rows.items()}, matrix=matrix))
            found |= dict.fromkeys(bands[0], tuple(own))
    return found


def _file(part: Part) -> str:
    return f"{part.name}.safetensors"


def _boot() -> str:
    return _BOOT.read_text().strip() if _BOOT.exists() else ""
