"""ggml's blocks on their way from one encoding to a better one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hubbot.formats.gguf.blocks import Blocks, Layout

__all__ = ["PARTS", "State"]

PARTS = ("d", "dmin", "scale", "minimum", "steps")


@dataclass(slots=True)
class State:
    """Blocks on the way, float32 and transposed: d, dmin [blocks, out], scale, minimum [groups, out], steps [in, out]."""

    layout: Layout
    d: torch.Tensor
    dmin: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor
    steps: torch.Tensor

    @classmethod
    def of(cls, blocks: Blocks, layout: Layout, device: torch.device) -> State:
        parts = (torch.from_numpy(getattr(blocks, name)).to(device) for name in PARTS)
        return cls(layout, *(part.t().to(torch.float32).contiguous() for part in parts))

    def blocks(self) -> Blocks:
        d, dmin, *whole = (getattr(self, name).t() for name in PARTS)
        scale, minimum, steps = (part.to(torch.int16) for part in whole)
        parts = (part.contiguous().cpu().numpy() for part in (d, dmin, scale, minimum, steps))
        return Blocks(**dict(zip(PARTS, parts, strict=True)))

    @property
    def groups(self) -> int:
        """In a block."""
        return self.layout.block // self.layout.group

    def span(self, columns: slice) -> State:
        """The blocks of some columns as a view."""
        blocks, groups = (
            slice(columns.start // size, columns.stop // size) for size in (self.layout.block, self.layout.group)
        )
        return State(
            self.layout,
            self.d[blocks],
            self.dmin[blocks],
            self.scale[groups],
            self.minimum[groups],
            self.steps[columns],
        )

    def grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and minimum of every column, [in, out]."""
        scale = self.d.repeat_interleave(self.groups, 0) * self.scale
        minimum = self.dmin.repeat_interleave(self.groups, 0) * self.minimum
        return scale.repeat_interleave(self.layout.group, 0), minimum.repeat_interleave(self.layout.group, 0)

    def grid_at(self, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and minimum of some columns, int64 [columns], each [columns, out]."""
        block, group = columns // self.layout.block, columns // self.layout.group
        return self.d[block] * self.scale[group], self.dmin[block] * self.minimum[group]

    def decode(self) -> torch.Tensor:
        scale, minimum = self.grid()
        return scale * self.steps - minimum
