"""The factor of a matrix's inverse that feedback of errors goes by, without the inverse itself."""

from __future__ import annotations

import torch

__all__ = ["inverse_factor"]

_DIRECT = 512  # columns of a triangular matrix that are inverted at once


def inverse_factor(matrix: torch.Tensor) -> torch.Tensor | None:
    """Upper triangular U with U'U = inverse of `matrix`, or None where it is not positive definite.

    A Cholesky factor L of the matrix read backwards is, read backwards, the upper R with R R' = matrix;
    then U = inverse of R, and the inverse itself is never formed. What a card has no room for is done in the host's memory.
    """
    try:
        return _factored(matrix)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
    factor = _factored(matrix.cpu())
    return None if factor is None else factor.to(matrix.device)


def _factored(matrix: torch.Tensor) -> torch.Tensor | None:
    lower, failed = torch.linalg.cholesky_ex(matrix.flip(0, 1).double())
    if failed.item():
        return None
    _invert(lower)
    factor: torch.Tensor = lower.float().flip(0, 1)
    return factor


def _invert(lower: torch.Tensor) -> None:
    """Turn a lower triangular matrix into its inverse where it lies, by halves: a third of the work of solving for all columns."""
    size = lower.shape[0]
    if size <= _DIRECT:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first, corner, second = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    corner.copy_(torch.linalg.solve_triangular(second, corner.neg(), upper=False))
    corner.copy_(torch.linalg.solve_triangular(first, corner, upper=False, left=False))
    _invert(first)
    _invert(second)
