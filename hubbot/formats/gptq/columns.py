"""What the solver does column by column, on a CPU: the definition of `hubbot.kernels.gptq`.

Matrices are float32 and transposed, [in, out]: a column of the layer is a contiguous row. Output features are
independent of one another. weight = scale * (code - zero), codes 0 .. 2**bits - 1, scale and zero [out].

All is counted in steps of the scale, code - zero. A column is some operations on a row that is often short: numpy
begins one in a fraction of the time that torch does. Columns pass their errors on a few at a time, and these few in one product.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from hubbot.kernels import kernels_on

__all__ = ["BLOCK", "best_candidate", "descend", "nearest_code", "round_columns"]

BLOCK = 128  # columns that are worked on before the rest of the matrix is updated

_FEW = 8  # columns, at least, that are worked on before the rest of the block is updated
_PRODUCT = 2**13  # numbers of a matrix up to which numpy multiplies a vector with it in this thread alone
_AT_ONCE = 2**17  # weights that a grid is tried on in one operation: what goes with them fits a cache

Array = npt.NDArray[np.float32]


def nearest_code(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """float32 codes of weights [..., out], half to even as everywhere in torch."""
    return torch.clamp(torch.round(weight / scale) + zero, 0, 2**bits - 1)


def best_candidate(
    weight: torch.Tensor, importance: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int
) -> torch.Tensor:
    """Which of the tried grids has the least importance-weighted squared rounding error, for every output feature.

    weight: [columns, out]. importance: [columns]. scales, zeros: [candidates, out]. Returns int64 [out]; of equal
    ones the first.
    """
    if kernels := kernels_on(weight, "gptq"):
        found: torch.Tensor = kernels.best_candidate(weight, importance, scales, zeros, bits)
        return found
    errors = torch.empty_like(scales)
    together = max(1, _AT_ONCE // max(1, weight.numel()))
    for first in range(0, len(scales), together):
        some = slice(first, first + together)
        scale, zero = scales[some, None], zeros[some, None]
        steps = weight / scale
        torch.matmul(
            importance, steps.round().clamp_(-zero, 2**bits - 1 - zero).sub_(steps).square_(), out=errors[some]
        )
    return errors.mul_(scales.square()).argmin(0)


def round_columns(
    weight: torch.Tensor, factor: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round columns one after another, passing each one's error on to the later ones of the same call.

    weight: [columns, out], with the errors of earlier columns passed on; not changed. factor: [columns, columns],
    their square of the upper triangular factor of the inverse Hessian. Returns codes and errors, [columns, out];
    an error is the rounding error over the factor's diagonal entry.
    """
    if kernels := kernels_on(weight, "gptq"):
        found: tuple[torch.Tensor, torch.Tensor] = kernels.round_columns(weight, factor, scale, zero, bits)
        return found
    diagonal = factor.diagonal()[:, None]
    wanted = weight / scale
    steps = torch.empty_like(wanted)
    _walk(wanted, steps, factor / diagonal, zero, bits)
    errors = (wanted - steps).mul_(scale).div_(diagonal)
    return steps.add_(zero), errors


def descend(
    steps: torch.Tensor, hessian: torch.Tensor, pull: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int
) -> None:
    """Set every code, one after another, to the best one for all others of the same call.

    steps: [columns, out], codes less zero; changes in place. hessian: [columns, columns]. pull: [columns, out], half
    the negative gradient of the error; not changed.
    """
    if kernels := kernels_on(steps, "gptq"):
        kernels.descend(steps, hessian, pull, scale, zero, bits)
        return
    diagonal = hessian.diagonal()
    before = steps.clone()
    # What a column is pulled to, of which its own step is a part that does not move: a later column sees what changed.
    wanted = (pull / scale).div_(diagonal[:, None]).add_(before)
    _walk(wanted, steps, hessian / diagonal, zero, bits, before)


def _walk(
    wanted: torch.Tensor,
    steps: torch.Tensor,
    spread: torch.Tensor,
    zero: torch.Tensor,
    bits: int,
    before: torch.Tensor | None = None,
) -> None:
    """Put the nearest step that there is for `wanted` into each row of `steps`; later rows want what that leaves of it.

    wanted: [columns, out], in steps; changes in place. spread: [columns, columns], what of a row's error, or where there was a
    step before of its change, is asked of the later ones. zero: [out].
    """
    low, high = (-zero).numpy(), (2**bits - 1 - zero).numpy()
    asked = spread.t().contiguous()
    size = min(max(_PRODUCT // max(1, wanted.shape[1]), _FEW), BLOCK)
    moved = torch.empty((size, wanted.shape[1]))
    for first in range(0, len(wanted), size):
        few, rest = slice(first, min(first + size, len(wanted))), slice(first + size, None)
        own = steps[few] if before is None else before[few]
        _walk_few(wanted[few], steps[few], asked[few, few], moved, low, high, own, of_error=before is None)
        wanted[rest].addmm_(asked[rest, few], moved[: few.stop - first], alpha=-1)


def _walk_few(
    wanted: torch.Tensor,
    steps: torch.Tensor,
    asked: torch.Tensor,
    moved: torch.Tensor,
    low: Array,
    high: Array,
    before: torch.Tensor,
    *,
    of_error: bool,
) -> None:
    """The same of a few rows; `moved` gets what each passes on."""
    shares, sent, pulled = asked.numpy(), moved.numpy(), np.empty_like(low)
    short = len(low) * _FEW <= _PRODUCT
    rows = zip(wanted.numpy(), steps.numpy(), before.numpy(), sent, strict=False)
    for number, (row, step, last, own) in enumerate(rows):
        if number and short:
            np.dot(shares[number, :number], sent[:number], out=pulled)
            np.subtract(row, pulled, out=row)
        elif number:
            wanted[number].addmv_(moved[:number].t(), asked[number, :number], alpha=-1)
        np.rint(row, out=step)
        np.maximum(step, low, out=step)
        np.minimum(step, high, out=step)
        if of_error:
            np.subtract(row, step, out=own)
        else:
            np.subtract(step, last, out=own)
