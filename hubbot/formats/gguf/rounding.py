"""Rounding into ggml's blocks by what an error does to the layer's outputs, not by how large it is.

For y = W x with H the sum of x x' over the calibration text, the squared change of the outputs is tr((W - Q) H (W - Q)').
ggml's encoders know the diagonal of H (the importance matrix) and weigh each weight's own error. Here the whole numbers of
the same blocks, in the same bytes, are chosen by all of H:

    grids      scales and minimums as ggml finds them with the importance matrix
    rounding   column after column, the heaviest first, each one's error passed on to those to come (Frantar et al. 2022,
               arXiv:2210.17323; the grids stay, so that any order of columns will do)
    refining   two sweeps of coordinate descent over scales, minimums and steps: `hubbot.formats.gguf.refinement`
    choice     row by row the result or ggml's own encoding, whichever has less of that sum

docs/quality.md has what each step brings. All maths is float32 on the Hessian's device, matrices are held transposed,
[in, out], as in `hubbot.formats.gptq.solver`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hubbot.domain import Gptq
from hubbot.formats.gguf import codec
from hubbot.formats.gguf.blocks import LAYOUTS, Blocks, Layout
from hubbot.formats.gguf.cuda.rows import encoded
from hubbot.formats.gguf.descent import SPAN, loops_on
from hubbot.formats.gguf.refinement import NEIGHBOURS, inverse, left_over, refined
from hubbot.formats.gguf.state import PARTS, State
from hubbot.formats.gptq.solver import prepare
from hubbot.kernels import kernels_on
from hubbot.machine import cores

__all__ = ["DAMPING", "Curvature", "curvature_of", "round_columns", "round_rows"]

DAMPING = 0.01  # share of the mean diagonal of the Hessian, as GPTQ's own
_ON_A_CARD = 128  # columns in one launch
_WHOLE = Gptq(bits=4, group_size=-1)  # one group: all columns in the order of their weight

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curvature:
    """A Hessian made ready for rounding; tensors and types with the same inputs share it.

    hessian: float32 [in, in], over its mean diagonal, damped. order: int64 [in], the column that is rounded at each step.
    factor: float32 [in, in], upper triangular U with U'U the inverse of `hessian`, in that order.
    """

    hessian: torch.Tensor
    order: torch.Tensor
    factor: torch.Tensor


def curvature_of(hessian: torch.Tensor) -> Curvature:
    """What rounding into any type takes of a Hessian, float32 [in, in]. Raises Unsupported where it is not finite."""
    found = prepare(hessian, _WHOLE, DAMPING)
    back = found.order.argsort()
    return Curvature(
        hessian=found.hessian[back][:, back].contiguous(), order=found.order, factor=found.factor.contiguous()
    )


def round_rows(rows: torch.Tensor, kind: int, curvature: Curvature, importance: Floats | None) -> Bytes:
    """Encode rows, float32 [out, in] where the Hessian lies, into a type's bytes.

    curvature: by `curvature_of`. importance: as ggml's encoder takes it.
    """
    layout, hessian = LAYOUTS[kind], curvature.hessian
    wanted, own = rows.t().contiguous(), State.of(_ggmls(rows, kind, layout, importance), layout, rows.device)
    rounded = replace(own, **{name: getattr(own, name).clone() for name in PARTS})
    worth = round_all(wanted, rounded, curvature)
    worth -= refined(wanted, rounded, hessian)
    return _packed(_chosen(own, rounded, worth < _loss(left_over(own, wanted), hessian)).blocks(), layout)


def _loss(lost: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Of an error, [in, out] -> [out]. The Hessian is symmetric: what is below its diagonal counts double, what is above is left out."""
    found = torch.zeros_like(lost[0])
    for start in range(0, len(lost), SPAN):
        columns = slice(start, min(start + SPAN, len(lost)))
        own = lost[columns]
        found += (own * (hessian[columns, columns] @ own).add_(hessian[columns, :start] @ lost[:start], alpha=2)).sum(0)
    return found


def _chosen(own: State, rounded: State, better: torch.Tensor) -> State:
    """Output by output the rounded blocks where they are better, as nearly always all of them are."""
    if better.all():
        return rounded
    parts: dict[str, Any] = {name: torch.where(better, getattr(rounded, name), getattr(own, name)) for name in PARTS}
    return replace(own, **parts)


def _ggmls(rows: torch.Tensor, kind: int, layout: Layout, importance: Floats | None) -> Blocks:
    """Rows as ggml encodes them, taken apart: encoded on the card that they lie on, or else on all cores."""
    data = encoded(kind, rows, importance)
    pieces = min(cores(), len(rows))

    def apart(piece: npt.NDArray[Any]) -> Blocks:
        return layout.unpack(codec.encoded(kind, piece, importance) if data is None else piece.reshape(-1), len(piece))

    whole = rows.numpy(force=True) if data is None else data.numpy(force=True).reshape(len(rows), -1)
    with ThreadPoolExecutor(pieces) as pool:
        return Blocks.together(list(pool.map(apart, np.array_split(whole, pieces))))


def _packed(blocks: Blocks, layout: Layout) -> Bytes:
    pieces = blocks.split(min(cores(), len(blocks.d)))
    with ThreadPoolExecutor(len(pieces)) as pool:
        return np.concatenate(list(pool.map(layout.pack, pieces)))


def round_all(wanted: torch.Tensor, state: State, curvature: Curvature) -> torch.Tensor:
    """GPTQ's pass on grids that stay: the state's steps change. Returns the error of each output feature, [out]."""
    loops, factor, order = loops_on(wanted), curvature.factor, curvature.order
    round_some = loops.round_span if loops else round_span
    at_once = SPAN if loops else _ON_A_CARD if wanted.is_cuda else NEIGHBOURS
    rest, lost = wanted[order], torch.zeros_like(wanted[0])
    for start in range(0, len(order), at_once):
        here = slice(start, min(start + at_once, len(order)))
        errors = round_some(rest[here], factor[here, here], order[here], state, lost)
        rest[here.stop :].addmm_(factor[here, here.stop :].t(), errors, alpha=-1)
    return lost


def round_span(
    rest: torch.Tensor, factor: torch.Tensor, order: torch.Tensor, state: State, lost: torch.Tensor
) -> torch.Tensor:
    """Round some columns of a state, int64 [columns], whose steps change. Returns the errors, [columns, out].

    rest: [columns, out], what is wanted there with the errors of earlier columns passed on. factor: see `round_columns`. lost: [out],
    grows by the squares of the errors.
    """
    scale, minimum = state.grid_at(order)
    state.steps[order], errors = round_columns(rest + minimum, factor, scale, inverse(scale), state.layout.steps)
    lost += errors.square().sum(0)
    return errors


def round_columns(
    rest: torch.Tensor, factor: torch.Tensor, scale: torch.Tensor, inverse: torch.Tensor, steps: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round columns one after another, passing each one's error on to the later ones of the same call.

    rest: [columns, out], with the errors of earlier columns passed on; may change. factor: [columns, columns], their square of the
    upper triangular factor of the inverse Hessian. scale, inverse: of each weight, [columns, out]. steps: least and largest.
    Returns steps and errors, [columns, out]; an error is the rounding error over the factor's diagonal entry.
    """
    if kernels := kernels_on(rest, "blocks"):
        on_card: tuple[torch.Tensor, torch.Tensor] = kernels.round_columns(rest, factor, scale, inverse, steps)
        return on_card
    found, errors = torch.empty_like(rest), torch.empty_like(rest)
    for column in range(len(rest)):
        found[column] = torch.mul(rest[column], inverse[column]).round_().clamp_(*steps)
        lost = torch.addcmul(rest[column], scale[column], found[column], value=-1)
        errors[column] = lost.div_(factor[column, column])
        rest[column + 1 :].addr_(factor[column, column + 1 :], errors[column], alpha=-1)
    return found, errors
