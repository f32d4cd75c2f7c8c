"""A tensor into the files that take it rounded by the Hessian of its inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from hubbot.formats.gguf import codec
from hubbot.formats.gguf.encode import Job, RawRows
from hubbot.formats.gguf.rounding import round_rows

__all__ = ["write_rounded"]


def write_rounded(job: Job, hessians: Sequence[torch.Tensor | None]) -> None:
    """Encode a tensor, expert by expert where it holds several, and write it.

    hessians: of each expert's inputs, or the only one; an expert that nothing is known of is encoded as ever.
    """
    count = job.count // len(hessians)
    for kind in job.targets:
        codec.prepare(kind)
    for expert, hessian in enumerate(hessians):
        start = expert * count
        rows = _as_floats(job, start, start + count)
        for kind, files in job.targets.items():
            data = _encoded(rows, kind, hessian, job.weight_of(start))
            for file in files:
                file.write_rows(job.name, start, data)


def _encoded(
    rows: npt.NDArray[np.float32], kind: int, hessian: torch.Tensor | None, importance: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.uint8]:
    if hessian is not None:
        return round_rows(rows, kind, hessian, importance)
    data = np.empty(len(rows) * codec.row_bytes(kind, rows.shape[1]), np.uint8)
    codec.encode_rows(kind, rows, data, importance)
    return data


def _as_floats(job: Job, start: int, stop: int) -> npt.NDArray[np.float32]:
    """float32, rounded to the type of a converted file first, as the usual chain does."""
    raw = RawRows.of(job.rows[start:stop])
    codec.require_finite(raw.kind, raw.data)
    values = _decoded(raw.kind, raw.data, (stop - start, job.columns))
    if job.kind in (codec.F32, raw.kind):
        return values
    rounded = np.empty((stop - start) * codec.row_bytes(job.kind, job.columns), np.uint8)
    codec.encode_rows(job.kind, values, rounded)
    return _decoded(job.kind, rounded, values.shape)


def _decoded(kind: int, data: npt.NDArray[np.uint8], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    values = np.empty(shape, np.float32)
    codec.decode_rows(kind, data.reshape(-1), values)
    return values
