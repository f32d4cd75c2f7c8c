"""Published bytes back in the checkpoint's layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hubbot.formats.gguf import codec
from hubbot.formats.gguf.cuda.codec import card_codec
from hubbot.formats.gguf.rowmap import Rows

__all__ = ["DecodedTensor", "Piece"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One GGUF tensor that holds rows of a checkpoint tensor."""

    read: Callable[[], torch.Tensor]  # its bytes, uint8, from the file or the card that made them
    kind: int
    columns: int
    rows: Rows | None  # None: it is the checkpoint tensor as it stands

    def values(self, device: torch.device) -> torch.Tensor:
        """float32 [rows of the GGUF tensor, columns], on the device or, where a card cannot decode the type, on the CPU."""
        data = self.read()
        shape = (data.numel() // codec.row_bytes(self.kind, self.columns), self.columns)
        decoder = card_codec(self.kind, device) if device.type == "cuda" else None
        if decoder is None:
            values = np.empty(shape, np.float32)
            codec.decode_rows(self.kind, data.cpu().numpy(), values)
            return torch.from_numpy(values)
        found = torch.empty(shape, device=device)
        decoder.decode(data.to(device), found)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedTensor:
    """A checkpoint tensor as a reader of the GGUF computes with it. Reads its bytes when asked."""

    shape: tuple[int, ...]
    pieces: Sequence[Piece]
    device: torch.device
    rest: tuple[npt.NDArray[np.int64], torch.Tensor] | None = None  # rows that no GGUF holds, and their source values

    def decode(self) -> torch.Tensor:
        """float32 in the checkpoint's shape and row order."""
        if len(self.pieces) == 1 and self.pieces[0].rows is None:
            return self.pieces[0].values(self.device).reshape(self.shape)
        whole = torch.zeros((int(np.prod(self.shape[:-1])), self.shape[-1]), device=self.device)
        for piece in self.pieces:
            values = piece.values(self.device).to(self.device)
            if piece.rows is None:
                whole[:] = values
                continue
            moved = values[self._index(piece.rows.ours)]
            if piece.rows.columns is not None:
                moved = moved[:, self._index(np.argsort(piece.rows.columns))]
            whole[self._index(piece.rows.theirs)] = moved
        if self.rest is not None:
            rows, values_of_source = self.rest
            whole[self._index(rows)] = values_of_source.to(self.device)
        return whole.reshape(self.shape)

    def _index(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(rows).to(self.device)
