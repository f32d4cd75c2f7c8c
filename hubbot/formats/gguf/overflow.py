"""GGUF types that cannot hold a model's largest weights: their scales, or they themselves, are float16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hubbot.domain import Gguf, Source
from hubbot.formats.gguf import codec
from hubbot.formats.gguf.format import plan_unread
from hubbot.formats.gguf.plan import Facts, VariantPlan
from hubbot.formats.gguf.snapshot import Snapshot
from hubbot.formats.protocol import beyond_float16
from hubbot.model.finite import LARGEST_FLOAT16, Large
from hubbot.settings import GgufSettings

__all__ = ["overflows"]

Rows = Mapping[str, npt.NDArray[np.float32]]  # checkpoint tensor -> its rows with values beyond float16


def overflows(
    variants: Sequence[Gguf],
    source: Source,
    facts: Facts,
    work: Path,
    settings: GgufSettings,
    large: Mapping[str, Large],
    *,
    text: str,
    quantized_by: str | None,
) -> dict[str, str]:
    """Variant name -> the tensor that its types cannot hold: ggml's own encoder is given the rows in question."""
    plan = plan_unread(variants, source, facts, work, settings, text=text, quantized_by=quantized_by)
    snapshot = Snapshot(facts)
    rows = {name: _large_rows(snapshot, name) for name in large if len(facts.tensors[name].shape) == 2}
    homes = {tensor.name: leaf for tensor in plan.model.tensors for leaf in tensor.leaves if leaf in rows}
    lost = {name: _lost(variant, homes, rows) for name, variant in plan.variants.items()}
    return {name: beyond_float16(name, tensor, large[tensor]) for name, tensor in lost.items() if tensor}


def _large_rows(snapshot: Snapshot, name: str) -> npt.NDArray[np.float32]:
    weight = snapshot.read(name).float()
    rows: npt.NDArray[np.float32] = weight[weight.abs().amax(1) > LARGEST_FLOAT16].contiguous().numpy()
    return rows


def _lost(variant: VariantPlan, homes: Mapping[str, str], rows: Rows) -> str | None:
    """The first checkpoint tensor with rows that the variant's type for it cannot hold."""
    for tensor, leaf in homes.items():
        kind = variant.recipe.kinds[tensor]
        if kind not in (codec.F32, codec.BF16) and not _holds(kind, rows[leaf]):
            return leaf
    return None


def _holds(kind: int, rows: npt.NDArray[np.float32]) -> bool:
    codec.prepare(kind)
    count, columns = rows.shape
    out = np.empty(count * codec.row_bytes(kind, columns), np.uint8)
    importance = np.ones(columns, np.float32) if codec.requires_importance(kind) else None
    try:
        codec.encode_rows(kind, rows, out, importance)
    except ValueError:
        return False
    decoded = np.empty_like(rows)
    codec.decode_rows(kind, out, decoded)
    return bool(np.isfinite(decoded).all())
