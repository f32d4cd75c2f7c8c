"""The importance matrix as llama.cpp's llama-imatrix writes it: a GGUF of sums and counts.

For each matrix `NAME`: `NAME.in_sum2`, float32 [experts, columns], the sum over tokens of the squared input
features, and `NAME.counts`, float32 [experts, 1], how many tokens; one expert for a plain matrix. Published under a name that does not end
in .gguf, which the Hub would list as a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hubbot import llamacpp

__all__ = ["ImportanceEntry", "write_imatrix"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceEntry:
    """What the calibration saw at the input of one matrix, or of each expert's."""

    sums: npt.NDArray[np.float32]  # [columns] or [experts, columns], sum of x_j^2
    tokens: int | npt.NDArray[np.int64]  # or [experts]

    def vector(self) -> npt.NDArray[np.float32]:
        """float32 like sums: mean of x_j^2, divided in float32 as llama-quantize does it; 1 for an expert without tokens."""
        counts = np.asarray(self.tokens, dtype=np.float32)[..., None]
        means = self.sums / np.maximum(counts, np.float32(1))
        return np.ascontiguousarray(np.where(counts > 0, means, np.float32(1)), dtype=np.float32)


def write_imatrix(
    path: Path, entries: Mapping[str, ImportanceEntry], *, dataset: str, chunks: int, length: int
) -> None:
    """Write an importance matrix that `llama-quantize --imatrix` reads.

    entries: GGUF tensor name -> its entry. dataset: where the text came from. chunks, length: windows
    and tokens per window.
    """
    gguf = llamacpp.gguf()
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.kv_data = [{}]  # llama-imatrix writes no general.architecture
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", length)
    for name in sorted(entries):
        entry = entries[name]
        sums = entry.sums if entry.sums.ndim > 1 else entry.sums.reshape(1, -1)
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", np.asarray(entry.tokens, dtype=np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
