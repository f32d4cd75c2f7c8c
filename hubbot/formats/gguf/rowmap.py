"""Where the checkpoint's rows lie in the GGUF: the converter's row moves, observed.

llama.cpp's converter splits, stacks and permutes rows on the way. Instead of knowing that per
architecture, the same lazy graphs are run on probes: tensors of the checkpoint's shapes whose 32-bit
patterns number all their elements. Copies, views and concatenations keep bit patterns, so the result
names the origin of each element; arithmetic on values does not, and shows as a pattern that is no
row of anything. Those tensors are `transformed`, and their decoded form is not offered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hubbot.formats.gguf.converter import Captured, TensorFact
from hubbot.formats.gguf.graph import evaluate, size_of

__all__ = ["Rows", "is_identity", "trace_rows"]

Indices = npt.NDArray[np.int64]

# leaf -> to(float32) -> numpy() -> astype(float32): a tensor that passes through the converter untouched
_UNTOUCHED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of one GGUF tensor that came from one tensor of the checkpoint.

    ours, theirs: equally long; row ours[i] of the GGUF tensor is row theirs[i] of the checkpoint's.
    columns: column j of the GGUF is column columns[j] of the checkpoint's; None: as they were.
    """

    ours: Indices
    theirs: Indices
    columns: Indices | None = None


def is_identity(tensor: Captured, facts: Mapping[str, TensorFact]) -> bool:
    """Whether the GGUF tensor is one checkpoint tensor as it stands, told without touching memory."""
    if len(tensor.leaves) != 1 or size_of(tensor.value) > _UNTOUCHED:
        return False
    if tuple(facts[tensor.leaves[0]].shape) != tensor.shape:
        return False
    # pages of an empty tensor exist only once they are written, and a view writes none
    probe = torch.empty(tensor.shape, dtype=torch.float32)
    seen = evaluate(tensor.value, lambda _: probe)
    return seen.ctypes.data == probe.data_ptr() and seen.shape == tensor.shape and seen.strides == probe.numpy().strides


def trace_rows(tensor: Captured, facts: Mapping[str, TensorFact]) -> dict[str, Rows] | None:
    """Checkpoint name -> where its rows lie in the GGUF tensor; None for a transformed tensor.

    Takes memory for the checkpoint tensors once more, in float32, and the GGUF tensor.
    """
    starts: dict[str, int] = {}
    total = 0
    for name in tensor.leaves:
        starts[name] = total
        total += int(np.prod(facts[name].shape))
    if not tensor.leaves or total >= 2**31:
        return None

    def probe(name: str) -> torch.Tensor:
        shape = tuple(facts[name].shape)
        numbers = torch.arange(starts[name], starts[name] + int(np.prod(shape)), dtype=torch.int32)
        return numbers.view(torch.float32).reshape(shape)

    seen = evaluate(tensor.value, probe)
    if seen.dtype != np.float32 or seen.size != tensor.weights:
        return None
    elements = np.ascontiguousarray(seen).view(np.int32).reshape(tensor.rows, tensor.columns)
    return _split_by_origin(elements, tensor, starts, facts)


def _split_by_origin(
    elements: npt.NDArray[np.int32], tensor: Captured, starts: Mapping[str, int], facts: Mapping[str, TensorFact]
) -> dict[str, Rows] | None:
    found: dict[str, Rows] = {}
    first = elements[:, 0].astype(np.int64)
    placed = 0
    for name, start in starts.items():
        columns = int(facts[name].shape[-1])
        size = int(np.prod(facts[name].shape))
        ours = np.flatnonzero((first >= start) & (first < start + size))
        if not ours.size:
            continue
        order = (elements[ours[0]].astype(np.int64) - start) % columns
        theirs = (first[ours] - start) // columns
        if not _rows_agree(elements, ours, start + theirs * columns, order):
            return None
        moved = not np.array_equal(order, np.arange(columns)) if order.size == columns else True
        if moved and not np.array_equal(np.sort(order), np.arange(columns)):
            return None
        found[name] = Rows(ours=ours, theirs=theirs, columns=order if moved else None)
        placed += ours.size
    return found if placed == tensor.rows else None


def _rows_agree(elements: npt.NDArray[np.int32], ours: Indices, begins: Indices, order: Indices) -> bool:
    """Whether each row holds one whole row of the checkpoint, all in the same order of columns."""
    step = max(1, 2**22 // max(1, order.size))  # rows compared at a time, to keep temporaries small
    for at in range(0, ours.size, step):
        part = slice(at, at + step)
        if not np.array_equal(elements[ours[part]], begins[part, None] + order[None, :]):
            return False
    return True
