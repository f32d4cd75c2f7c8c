"""Rows through a type where they lie: by a card's program, or by the cores where there is none or it calls a block odd."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from hubbot.formats.gguf import codec
from hubbot.formats.gguf.cuda.codec import card_codec

__all__ = ["FLOATS", "encoded", "floats", "rounded"]

FLOATS = {codec.F32: torch.float32, codec.F16: torch.float16, codec.BF16: torch.bfloat16}

Floats = npt.NDArray[np.float32]


def floats(rows: torch.Tensor, kind: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of any float dtype rounded to one of FLOATS first, as in a converted file: float32, and whether any of them is not finite, int32 [1]."""
    if rows.dtype != FLOATS[kind]:
        rows = rows.to(torch.float32).to(FLOATS[kind])
    rows = rows.to(torch.float32).contiguous()
    return rows, (~rows.isfinite().all()).to(torch.int32).reshape(1)


def encoded(kind: int, rows: torch.Tensor, importance: Floats | None) -> torch.Tensor | None:
    """The bytes of rows, float32 [out, in], as ggml encodes them: uint8, on their card; None where the cores have to do it."""
    encoder = card_codec(kind, rows.device) if _on_a_card(rows) else None
    if encoder is None:
        return None
    data = torch.empty(len(rows) * codec.row_bytes(kind, rows.shape[1]), dtype=torch.uint8, device=rows.device)
    odd = torch.zeros(1, dtype=torch.int32, device=rows.device)
    encoder.encode(rows, None if importance is None else torch.from_numpy(importance).to(rows.device), data, odd)
    return None if odd.item() else data


def rounded(kind: int, rows: torch.Tensor, importance: Floats | None) -> torch.Tensor:
    """Rows, float32 [out, in], encoded and decoded again, where they lie. Raises ValueError where the type cannot hold them."""
    data, found = encoded(kind, rows, importance), torch.empty_like(rows)
    if data is not None and (decoder := card_codec(kind, rows.device)):
        decoder.decode(data, found)
        return found
    codec.prepare(kind)
    values = rows.cpu().numpy()
    out = np.empty_like(values)
    codec.decode_rows(kind, codec.encoded(kind, values, importance), out)
    return found.copy_(torch.from_numpy(out))


def _on_a_card(rows: torch.Tensor) -> bool:
    return rows.device.type == "cuda"
