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
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from hubbot.domain import Gptq
from hubbot.formats.gguf import codec
from hubbot.formats.gguf.blocks import LAYOUTS, Blocks, Layout
from hubbot.formats.gguf.encode import cores
from hubbot.formats.gguf.refinement import NEIGHBOURS, PARTS, State, inverse, refined
from hubbot.formats.gptq.groups import subtract_product
from hubbot.formats.gptq.solver import Curvature, prepare
from hubbot.kernels import kernels_on

__all__ = ["DAMPING", "curvature_of", "round_columns", "round_rows"]

DAMPING = 0.01  # share of the mean diagonal of the Hessian, as GPTQ's own
_ON_A_CARD = 128  # columns in one launch
_WHOLE = Gptq(bits=4, group_size=-1)  # one group: all columns in the order of their weight

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def curvature_of(hessian: torch.Tensor) -> Curvature:
    """What rounding into any type takes of a Hessian, float32 [in, in]. Raises Unsupported where it is not finite."""
    return prepare(hessian, _WHOLE, DAMPING)


def round_rows(rows: Floats, kind: int, curvature: Curvature, importance: Floats | None) -> Bytes:
    """Encode rows, float32 [out, in], into a type's bytes.

    curvature: by `curvature_of`. importance: as ggml's encoder takes it.
    """
    layout = LAYOUTS[kind]
    back, device = curvature.order.argsort(), curvature.hessian.device
    damped = curvature.hessian[back][:, back].contiguous()
    wanted = torch.from_numpy(rows).to(device).t().contiguous()
    own = State.of(_ggmls(rows, kind, layout, importance), layout, device)
    rounded = replace(own, **{name: getattr(own, name).clone() for name in PARTS})
    rounded.steps = _round_columns(wanted, rounded, curvature)
    found = own, refined(wanted, rounded, damped)
    worth = [_loss(wanted - state.decode(), damped) for state in found]
    return _packed(_chosen(own.blocks(), rounded.blocks(), (worth[1] < worth[0]).cpu().numpy()), layout)


def _loss(lost: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """float32 [out]."""
    return (lost * (hessian @ lost)).sum(0)


def _chosen(own: Blocks, rounded: Blocks, better: npt.NDArray[np.bool_]) -> Blocks:
    """Row by row the rounded blocks where they are better."""
    return Blocks(**{name: np.where(better[:, None], getattr(rounded, name), getattr(own, name)) for name in PARTS})


def _ggmls(rows: Floats, kind: int, layout: Layout, importance: Floats | None) -> Blocks:
    """Rows as ggml encodes them, taken apart; on all cores."""
    pieces = np.array_split(rows, min(cores(), len(rows)))
    with ThreadPoolExecutor(len(pieces)) as pool:
        return Blocks.together(
            list(pool.map(lambda piece: layout.unpack(codec.encoded(kind, piece, importance), len(piece)), pieces))
        )


def _packed(blocks: Blocks, layout: Layout) -> Bytes:
    pieces = blocks.split(min(cores(), len(blocks.d)))
    with ThreadPoolExecutor(len(pieces)) as pool:
        return np.concatenate(list(pool.map(layout.pack, pieces)))


def _round_columns(wanted: torch.Tensor, state: State, curvature: Curvature) -> torch.Tensor:
    """GPTQ's pass on grids that stay. Steps [in, out]."""
    order = curvature.order
    scale, minimum = (part[order] for part in state.grid())
    inverses = inverse(scale)
    found = torch.empty_like(wanted)
    rest = wanted[order] + minimum
    at_once = _ON_A_CARD if rest.is_cuda else NEIGHBOURS
    for start in range(0, len(order), at_once):
        here = slice(start, min(start + at_once, len(order)))
        factor = curvature.factor[here]
        found[here], errors = round_columns(
            rest[here], factor[:, here], scale[here], inverses[here], state.layout.steps
        )
        subtract_product(rest[here.stop :], factor[:, here.stop :].t(), errors)
    return found[order.argsort()]


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
