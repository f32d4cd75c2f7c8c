"""Published bytes back in the checkpoint's layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hubbot.formats.gguf import codec
from hubbot.formats.gguf.rowmap import Rows

__all__ = ["DecodedTensor", "Piece"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One GGUF tensor that holds rows of a checkpoint tensor."""

    read: Callable[[], npt.NDArray[np.uint8]]  # its bytes, from the file
    kind: int
    columns: int
    rows: Rows | None  # None: it is the checkpoint tensor as it stands

    def values(self) -> npt.NDArray[np.float32]:
        """float32 [rows of the GGUF tensor, columns]."""
        data = self.read()
        out = np.empty((data.size // codec.row_bytes(self.kind, self.columns), self.columns), np.float32)
        codec.decode_rows(self.kind, data, out)
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedTensor:
    """A checkpoint tensor as a reader of the GGUF computes with it. Reads the file when asked."""

    shape: tuple[int, ...]
    pieces: Sequence[Piece]
    rest: tuple[npt.NDArray[np.int64], torch.Tensor] | None = None  # rows that no GGUF holds, and their source values

    def decode(self) -> torch.Tensor:
        """float32 in the checkpoint's shape and row order, on the CPU."""
        if len(self.pieces) == 1 and self.pieces[0].rows is None:
            return torch.from_numpy(self.pieces[0].values().reshape(self.shape))
        columns = self.shape[-1]
        whole = np.zeros((int(np.prod(self.shape[:-1])), columns), np.float32)
        for piece in self.pieces:
            values = piece.values()
            if piece.rows is None:
                whole[:] = values
            elif piece.rows.columns is None:
                whole[piece.rows.theirs] = values[piece.rows.ours]
            else:
                back = np.argsort(piece.rows.columns)
                whole[piece.rows.theirs] = values[piece.rows.ours][:, back]
        if self.rest is not None:
            rows, values_of_source = self.rest
            whole[rows] = values_of_source.numpy()
        return torch.from_numpy(whole.reshape(self.shape))
