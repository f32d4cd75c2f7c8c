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

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from hubbot.domain import Gptq
from hubbot.formats.gguf import codec
from hubbot.formats.gguf.blocks import LAYOUTS, Blocks
from hubbot.formats.gguf.refinement import NEIGHBOURS, PARTS, State, inverse, refined
from hubbot.formats.gptq.groups import subtract_product
from hubbot.formats.gptq.solver import Curvature, prepare

__all__ = ["DAMPING", "curvature_of", "round_rows"]

DAMPING = 0.01  # share of the mean diagonal of the Hessian, as GPTQ's own
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
    wanted = torch.from_numpy(np.ascontiguousarray(rows.T)).to(device)
    own = State.of(layout.unpack(codec.encoded(kind, rows, importance), len(rows)), layout, device)
    rounded = replace(own, **{name: getattr(own, name).clone() for name in PARTS})
    rounded.steps = _round_columns(wanted, rounded, curvature)
    found = own, refined(wanted, rounded, damped)
    worth = [_loss(wanted - state.decode(), damped) for state in found]
    return layout.pack(_chosen(own.blocks(), rounded.blocks(), (worth[1] < worth[0]).cpu().numpy()))


def _loss(lost: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """float32 [out]."""
    return (lost * (hessian @ lost)).sum(0)


def _chosen(own: Blocks, rounded: Blocks, better: npt.NDArray[np.bool_]) -> Blocks:
    """Row by row the rounded blocks where they are better."""
    return Blocks(**{name: np.where(better[:, None], getattr(rounded, name), getattr(own, name)) for name in PARTS})


def _round_columns(wanted: torch.Tensor, state: State, curvature: Curvature) -> torch.Tensor:
    """GPTQ's pass on grids that stay. Steps [in, out]."""
    order = curvature.order
    scale, minimum = (part[order] for part in state.grid())
    per_weight = inverse(scale)
    steps = torch.empty_like(wanted)
    rest = wanted[order] + minimum
    for start in range(0, len(order), NEIGHBOURS):
        stop = min(start + NEIGHBOURS, len(order))
        factor, errors = curvature.factor[start:stop, start:], torch.empty_like(rest[start:stop])
        for column in range(stop - start):
            at = start + column
            steps[at] = torch.mul(rest[at], per_weight[at]).round_().clamp_(*state.layout.steps)
            errors[column] = torch.addcmul(rest[at], scale[at], steps[at], value=-1).div_(factor[column, column])
            rest[at + 1 : stop].addr_(factor[column, column + 1 : stop - start], errors[column], alpha=-1)
        subtract_product(rest[stop:], factor[:, stop - start :].t(), errors)
    return steps[order.argsort()]
