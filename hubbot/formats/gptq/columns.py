"""What the solver does column by column, in plain torch: the definition of `hubbot.kernels.gptq`.

Matrices are float32 and transposed, [in, out]: a column of the layer is a contiguous row. Output features are
independent of one another. weight = scale * (code - zero), codes 0 .. 2**bits - 1, scale and zero [out].
"""

from __future__ import annotations

import torch

from hubbot.kernels import kernels_on

__all__ = ["BLOCK", "best_candidate", "descend", "nearest_code", "round_columns"]

BLOCK = 128  # columns that are worked on before the rest of the matrix is updated


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
    least = torch.full_like(weight[0], torch.inf)
    best = torch.zeros_like(weight[0], dtype=torch.long)
    for candidate, (scale, zero) in enumerate(zip(scales, zeros, strict=True)):
        rounded = scale * (nearest_code(weight, scale, zero, bits) - zero)
        error = importance @ (rounded - weight).square_()
        better = error < least
        best = torch.where(better, candidate, best)
        least = torch.where(better, error, least)
    return best


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
    left = weight.clone()
    codes, errors = torch.empty_like(left), torch.empty_like(left)
    for column in range(left.shape[0]):
        codes[column] = nearest_code(left[column], scale, zero, bits)
        errors[column] = (left[column] - scale * (codes[column] - zero)) / factor[column, column]
        left[column:].addr_(factor[column, column:], errors[column], alpha=-1)
    return codes, errors


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
    left = pull.clone()
    for column in range(steps.shape[0]):
        current = steps[column]
        target = current * scale + left[column] / hessian[column, column]
        best = nearest_code(target, scale, zero, bits) - zero
        left.addr_(hessian[column], (best - current) * scale, alpha=-1)
        steps[column] = best
