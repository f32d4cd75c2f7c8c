"""The hidden states that travel from block to block, and the checkpoint that lets a killed sweep go on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hubbot.domain import ExpertUse

__all__ = ["CheckpointClock", "Progress", "Streams", "load_checkpoint", "save_checkpoint", "timed"]

# At most this share of the time goes into writing checkpoints; with small models that is one a block.
_CHECKPOINT_SHARE = 0.05
_WRITTEN = 1e9  # bytes a second, until the first one was timed


@dataclass(slots=True)
class Streams:
    """Stream name -> hidden states, float32 [windows, length, hidden].

    `calibration` and `base` are the original model's; every variant has one under its own name.
    shared: stream name -> what blocks have left for later ones, by its name, [windows, ...].
    """

    hidden: dict[str, torch.Tensor] = field(default_factory=dict)
    shared: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of them, by names that `of` understands."""
        left = {f"{stream}\t{name}": each for stream, some in self.shared.items() for name, each in some.items()}
        return self.hidden | left

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Streams:
        found = cls()
        for full, tensor in tensors.items():
            stream, _, name = full.partition("\t")
            if name:
                found.shared.setdefault(stream, {})[name] = tensor
            else:
                found.hidden[stream] = tensor
        return found


@dataclass(slots=True)
class Progress:
    """How far a sweep is, and what it measured on the way."""

    parts_done: int = 0
    layer_errors: dict[str, dict[str, float]] = field(default_factory=dict)  # variant -> tensor -> relative error
    seconds: dict[str, float] = field(default_factory=dict)  # variant or step -> time spent
    failed: dict[str, str] = field(default_factory=dict)  # variant -> why its family gave up
    experts: list[ExpertUse] = field(default_factory=list)  # of each block that has some


class CheckpointClock:
    """Decides when the next checkpoint is due: when what it costs is little against the work that it would save."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last = now()
        self._cost: float | None = None

    def due(self, size: int) -> bool:
        """size: bytes that would be written."""
        cost = size / _WRITTEN if self._cost is None else self._cost
        return self._now() - self._last >= cost / _CHECKPOINT_SHARE

    def spent(self, seconds: float) -> None:
        self._last, self._cost = self._now(), seconds


def save_checkpoint(path: Path, streams: Streams, progress: Progress) -> None:
    """Write streams and progress so that a crash at any moment leaves the old or the new file whole."""
    partial = path.with_suffix(".partial")
    metadata = {"progress": json.dumps(asdict(progress)), "format": "1"}
    save_file({name: tensor.contiguous() for name, tensor in streams.tensors().items()}, partial, metadata)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(path: Path) -> tuple[Streams, Progress] | None:
    """The last checkpoint, or None where there is none."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        values = json.loads(file.metadata()["progress"])
        progress = Progress(**values | {"experts": [ExpertUse(**use) for use in values.get("experts", [])]})
    return Streams.of(tensors), progress


@contextmanager
def timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    """Add the time spent inside to `seconds[what]`, that of the card included, and where it was in vain too."""
    start = time.monotonic()
    try:
        yield
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # a call returns before the card is done
            torch.cuda.synchronize()
    finally:
        seconds[what] = seconds.get(what, 0.0) + time.monotonic() - start
