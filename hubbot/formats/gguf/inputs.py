"""What the calibration saw at the inputs of a GGUF tensor, whose rows and columns the converter may have moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from hubbot.formats.gguf.converter import Captured
from hubbot.formats.gguf.imatrix import ImportanceEntry
from hubbot.formats.gguf.origins import Origins
from hubbot.formats.protocol import InputStatistics, expert_name

__all__ = ["Inputs"]

_OF_EXPERTS = "_exps."  # in llama.cpp's names of tensors that hold every expert's matrix


class Inputs:
    """The way from the statistics of linear layers to those of GGUF tensors."""

    def __init__(self, origins: Origins) -> None:
        self._origins = origins

    def importance(self, tensor: Captured, statistics: Mapping[str, InputStatistics]) -> ImportanceEntry | None:
        """The importance of one GGUF tensor; None where nothing was seen of its inputs."""
        if len(tensor.shape) == 3:  # other stacks (heads of a split projection) have inputs that no layer is given
            return self._of_experts(tensor, statistics) if _OF_EXPERTS in tensor.name else None
        origin = next((name for name in tensor.leaves if name in statistics), None)
        if origin is None:
            return None
        sums = statistics[origin].squares.detach().float().cpu().numpy()
        order = self._order(tensor, origin)
        sums = np.ascontiguousarray(sums if order is None else sums[order])
        return ImportanceEntry(sums=sums, tokens=statistics[origin].tokens) if sums.size == tensor.columns else None

    def hessians(self, tensor: Captured, statistics: Mapping[str, InputStatistics]) -> Sequence[torch.Tensor | None]:
        """The Hessian of each expert's inputs, or the only one, float32 [columns, columns]; None where there is none."""
        if len(tensor.shape) == 3:
            if _OF_EXPERTS not in tensor.name:
                return ()
            found: list[torch.Tensor | None] = [None] * tensor.shape[0]
            for name, expert in self._experts(tensor).items():
                found[expert] = self._hessian(tensor, name, statistics, moved=False)
            return found
        origin = next((name for name in tensor.leaves if name in statistics), None)
        return () if origin is None else (self._hessian(tensor, origin, statistics, moved=True),)

    def _hessian(
        self, tensor: Captured, origin: str, statistics: Mapping[str, InputStatistics], *, moved: bool
    ) -> torch.Tensor | None:
        seen = statistics.get(origin)
        if seen is None or seen.hessian is None or len(seen.hessian) != tensor.columns:
            return None
        order = self._order(tensor, origin) if moved else None
        if order is None:
            return seen.hessian
        index = torch.from_numpy(np.asarray(order)).to(seen.hessian.device)
        return seen.hessian[index][:, index]

    def _of_experts(self, tensor: Captured, statistics: Mapping[str, InputStatistics]) -> ImportanceEntry | None:
        """Expert by expert: those of one matrix each in the checkpoint, or those of a tensor that holds all of them."""
        count = tensor.shape[0]
        sums, tokens = np.zeros((count, tensor.columns), np.float32), np.zeros(count, np.int64)
        for name, expert in self._experts(tensor).items():
            seen = statistics.get(name)
            if seen is not None and seen.squares.numel() == tensor.columns:
                sums[expert], tokens[expert] = seen.squares.detach().float().cpu().numpy(), seen.tokens
        return ImportanceEntry(sums=sums, tokens=tokens) if tokens.any() else None

    def _experts(self, tensor: Captured) -> dict[str, int]:
        """Name of the statistics -> the expert of a GGUF tensor [experts, rows, columns] whose inputs they are."""
        count = tensor.shape[0]
        if len(tensor.leaves) == 1:
            return {expert_name(tensor.leaves[0], expert): expert for expert in range(count)}
        traced = self._origins.trace(tensor) or {}
        return {name: int(rows.ours[0]) // (tensor.rows // count) for name, rows in traced.items()}

    def _order(self, tensor: Captured, origin: str) -> npt.NDArray[np.int64] | None:
        """Which input feature each column of the GGUF takes; None where they stand as in the checkpoint."""
        rows = None if self._origins.untouched(tensor) else (self._origins.trace(tensor) or {}).get(origin)
        return None if rows is None else rows.columns
