"""A tensor into the files that take it rounded by the Hessian of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hubbot.formats.gguf import codec
from hubbot.formats.gguf.cuda.rows import FLOATS, floats
from hubbot.formats.gguf.encode import Job, RawRows, as_floats
from hubbot.formats.gguf.rounding import Curvature, curvature_of, round_rows

__all__ = ["Curvatures", "write_rounded"]


@dataclass(slots=True)
class Curvatures:
    """The last Hessian's, since layers with one input share one Hessian."""

    _of: tuple[torch.Tensor, Curvature] | None = None

    def of(self, hessian: torch.Tensor) -> Curvature:
        if self._of is None or self._of[0] is not hessian:
            self._of = None  # first let go of it: two are large
            self._of = hessian, curvature_of(hessian)
        return self._of[1]


def write_rounded(job: Job, hessians: Sequence[torch.Tensor | None], curvatures: Curvatures) -> None:
    """Encode a tensor, expert by expert where it holds several, and write it.

    hessians: of each expert's inputs, or the only one; an expert that nothing is known of is encoded as ever.
    """
    count = job.count // len(hessians)
    for kind in job.targets:
        codec.prepare(kind)
    for expert, hessian in enumerate(hessians):
        start = expert * count
        rows, weight = job.rows[start : start + count], job.weight_of(start)
        curvature = None if hessian is None else curvatures.of(hessian)  # once for all types
        values = _floats(job, rows, torch.device("cpu") if hessian is None else hessian.device)
        for kind, files in job.targets.items():
            data = (
                round_rows(values, kind, curvature, weight)
                if curvature
                else codec.encoded(kind, values.numpy(), weight)
            )
            for file in files:
                file.write_rows(job.name, start, data)


def _floats(job: Job, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """float32 on a device, rounded to the type of a converted file first. Raises ValueError for what is no number."""
    if device.type != "cuda" or job.kind not in FLOATS:
        return torch.from_numpy(as_floats(job, RawRows.of(rows))).to(device)
    values, broken = floats(rows.to(device), job.kind)
    if broken.item():
        raise ValueError(codec.SOURCE_NOT_FINITE)
    return values
