"""Where the streams lie while they wait: on the card that computes, where they fit, else in the host's memory.

From the host's memory, pinned, batches cross the bus while others are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hubbot.machine.room import room_on
from hubbot.sweep.blocks import BlockModel
from hubbot.sweep.windows import Windows

__all__ = ["Home"]

_COMPUTING = 16e9  # bytes of the card that a block's own work may take beside its weights: Hessians, factors, batches
_WEIGHTS = 4  # copies of the largest part in float32: the original, a variant's, the encoders'


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """where: the streams' device. computing: the model's."""

    where: torch.device
    computing: torch.device

    @classmethod
    def of(cls, model: BlockModel, calibration: Windows | None, evaluation: Windows | None, variants: int) -> Home:
        """The card if what is free on it holds all streams and leaves room to work."""
        if model.device.type != "cuda":
            return cls(where=model.device, computing=model.device)
        tokens = (calibration.tokens.numel() if calibration else 0) + (1 + variants) * (
            evaluation.tokens.numel() if evaluation else 0
        )
        needed = 4 * (tokens * model.passage.stream_width + _WEIGHTS * model.largest_part) + _COMPUTING
        where = model.device if needed <= room_on(model.device) else torch.device("cpu")
        return cls(where=where, computing=model.device)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Room for a stream, or for what blocks leave for later ones."""
        return torch.empty(shape, dtype=dtype, device=self.where, pin_memory=self._over_the_bus)

    def taken_in(self, stream: torch.Tensor) -> torch.Tensor:
        """A stream that was loaded from a checkpoint."""
        if self._over_the_bus:
            return stream.pin_memory()
        return stream.to(self.where)

    def replace(self, stream: torch.Tensor, by: Callable[[torch.Tensor, slice], torch.Tensor], batch: int) -> None:
        """Put `by` of each batch of windows in the place of these windows. by: from and to the model's device, and which."""
        count = stream.shape[0]
        slices = [slice(first, min(first + batch, count)) for first in range(0, count, batch)]
        if not self._over_the_bus:
            for part in slices:
                stream[part] = by(stream[part], part)
        elif slices:
            self._replace_over_the_bus(stream, slices, by)

    @property
    def _over_the_bus(self) -> bool:
        return self.where != self.computing

    def _replace_over_the_bus(
        self, stream: torch.Tensor, slices: list[slice], by: Callable[[torch.Tensor, slice], torch.Tensor]
    ) -> None:
        batches = [stream[part] for part in slices]
        there, back = (torch.cuda.Stream(self.computing) for _ in range(2))  # type: ignore[no-untyped-call]
        computing = torch.cuda.current_stream(self.computing)

        def fetched(batch: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
            with torch.cuda.stream(there):
                return batch.to(self.computing, non_blocking=True), there.record_event()

        on_the_way = [fetched(batches[0])]
        for index, batch in enumerate(batches):
            on_the_way += [fetched(following) for following in batches[index + 1 : index + 2]]
            rows, arrived = on_the_way.pop(0)
            computing.wait_event(arrived)
            rows.record_stream(computing)
            carried = by(rows, slices[index])
            back.wait_event(computing.record_event())
            with torch.cuda.stream(back):
                batch.copy_(carried, non_blocking=True)
            carried.record_stream(back)
        back.synchronize()
