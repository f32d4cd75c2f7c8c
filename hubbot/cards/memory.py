"""What a variant needs to run: a stated formula, not a measurement."""

from __future__ import annotations

from pathlib import PurePosixPath

from hubbot.domain import Source, VariantRecord
from hubbot.formats import FAMILIES

__all__ = ["BUFFERS", "CONTEXT", "memory_needed", "weight_file_bytes"]

CONTEXT = 4_096  # tokens
BUFFERS = 500_000_000  # bytes for activations and the runtime's own


def weight_file_bytes(variant: VariantRecord) -> int:
    """Bytes of the files that hold weights."""
    return sum(
        file.size for file in variant.files if PurePosixPath(file.path).suffix == FAMILIES[variant.family].ABOUT.weights
    )


def memory_needed(variant: VariantRecord, source: Source) -> int | None:
    """Bytes: weight files + 16-bit key/value cache of `context(source)` tokens + BUFFERS.

    Without the source's cache size per token the cache is left out. None for a variant without weight files.
    """
    weights = weight_file_bytes(variant)
    return weights + context(source) * (source.kv_bytes_per_token or 0) + BUFFERS if weights else None


def context(source: Source) -> int:
    return min(CONTEXT, source.context_length or CONTEXT)
