"""Which GGUF tensors hold which checkpoint tensors, traced when asked and remembered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hubbot.formats.gguf.converter import Captured, Converted, TensorFact
from hubbot.formats.gguf.decoded import DecodedTensor, Piece
from hubbot.formats.gguf.rowmap import Rows, is_identity, trace_rows

__all__ = ["Held", "Origins", "decoded_tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One GGUF tensor that holds rows of a checkpoint tensor; rows None: it is that tensor as it stands."""

    tensor: Captured
    rows: Rows | None


class Origins:
    """The way between the checkpoint's tensors and the GGUF's, of one model."""

    def __init__(self, model: Converted, facts: Mapping[str, TensorFact]) -> None:
        self._facts = facts
        self._traced: dict[str, dict[str, Rows] | None] = {}
        self._untouched: dict[str, bool] = {}
        self._made_of: dict[str, list[Captured]] = {}
        for tensor in model.tensors:
            for leaf in tensor.leaves:
                self._made_of.setdefault(leaf, []).append(tensor)

    @property
    def transformed(self) -> tuple[str, ...]:
        """GGUF tensors met so far whose values the converter changes."""
        return tuple(sorted(name for name, rows in self._traced.items() if rows is None))

    def untouched(self, tensor: Captured) -> bool:
        """Whether the tensor is one checkpoint tensor as it stands."""
        if tensor.name not in self._untouched:
            self._untouched[tensor.name] = is_identity(tensor, self._facts)
        return self._untouched[tensor.name]

    def trace(self, tensor: Captured) -> dict[str, Rows] | None:
        """Checkpoint name -> its rows in the tensor; None where values are changed."""
        if tensor.name not in self._traced:
            self._traced[tensor.name] = trace_rows(tensor, self._facts)
        return self._traced[tensor.name]

    def holders(self, leaf: str) -> tuple[Held, ...]:
        """The GGUF tensors that hold a checkpoint tensor; none if any of them is transformed."""
        holders = []
        for tensor in self._made_of.get(leaf, ()):
            if self.untouched(tensor):
                holders.append(Held(tensor=tensor, rows=None))
                continue
            traced = self.trace(tensor)
            if traced is None:
                return ()
            if leaf in traced:
                holders.append(Held(tensor=tensor, rows=traced[leaf]))
        return tuple(holders)


def decoded_tensor(
    shape: tuple[int, ...],
    holders: tuple[Held, ...],
    place: Callable[[Captured], tuple[int, Callable[[], torch.Tensor]]],
    weight: torch.Tensor | None,
    device: torch.device,
) -> DecodedTensor:
    """A checkpoint tensor out of a file. place: GGUF tensor -> its type there, and how to read its bytes.

    weight: the source tensor, for rows that the converter leaves out. device: where it is decoded.
    """
    pieces = []
    for held in holders:
        kind, read = place(held.tensor)
        pieces.append(Piece(read=read, kind=kind, columns=held.tensor.columns, rows=held.rows))
    return DecodedTensor(shape=shape, pieces=pieces, device=device, rest=_rest(shape, holders, weight))


def _rest(
    shape: tuple[int, ...], holders: tuple[Held, ...], weight: torch.Tensor | None
) -> tuple[npt.NDArray[np.int64], torch.Tensor] | None:
    """Rows that the converter leaves out (vocabulary beyond the tokenizer): they stay what they were."""
    if weight is None or any(held.rows is None for held in holders):
        return None
    theirs = np.concatenate([held.rows.theirs for held in holders if held.rows is not None])
    missing = np.setdiff1d(np.arange(int(np.prod(shape[:-1]))), theirs)
    if not missing.size:
        return None
    return missing, weight.detach().reshape(-1, shape[-1])[torch.from_numpy(missing).to(weight.device)].float().cpu()
