"""What a variant needs to run: a stated formula, not a measurement."""

from __future__ import annotations

from pathlib import PurePosixPath

from hubbot.domain import Source, VariantRecord
from hubbot.formats import FAMILIES
from hubbot.formats.gguf.naming import is_vision

__all__ = ["BUFFERS", "CONTEXT", "cache_bytes", "context", "memory_needed", "memory_of", "weight_file_bytes"]

CONTEXT = 4_096  # tokens
BUFFERS = 500_000_000  # bytes for activations and the runtime's own


def weight_file_bytes(variant: VariantRecord) -> int:
    """Bytes of the files that hold weights; of GGUF, those of the text."""
    return sum(
        file.size
        for file in variant.files
        if PurePosixPath(file.path).suffix == FAMILIES[variant.family].ABOUT.weights and not is_vision(file.path)
    )


def memory_needed(variant: VariantRecord, source: Source) -> int | None:
    """What `memory_of` says of a variant's weight files; None where it has none."""
    weights = weight_file_bytes(variant)
    return memory_of(weights, source) if weights else None


def memory_of(weights: int, source: Source) -> int:
    """Bytes: weight files + 16-bit key/value cache of `context(source)` tokens + BUFFERS.

    Without the source's cache size per token the cache is left out.
    """
    return weights + cache_bytes(source) + BUFFERS


def cache_bytes(source: Source) -> int:
    return context(source) * (source.kv_bytes_per_token or 0)


def context(source: Source) -> int:
    return min(CONTEXT, source.context_length or CONTEXT)
