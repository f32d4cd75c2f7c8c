"""Rows that tell whether another encoder gives ggml's bytes: what checkpoints hold, and what strains the arithmetic."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["importance", "plain_rows", "straining_rows"]

Floats = npt.NDArray[np.float32]


def plain_rows(columns: int = 512) -> Floats:
    """float32 [24, columns]: bell-shaped, heavy-tailed, small integers, zero and tiny ones."""
    generator = np.random.default_rng(0)
    sizes = np.repeat([0.0, 1e-18, 1e-3, 1.0], columns // 4)
    rows = [
        generator.standard_normal((8, columns)),
        generator.standard_t(2, (8, columns)),
        generator.integers(-3, 4, (4, columns)),
        np.abs(generator.standard_normal((4, columns))) * sizes,
    ]
    return np.concatenate(rows).astype(np.float32)


def straining_rows(columns: int = 512, *, large: bool) -> Floats:
    """float32 [n, columns]: rows of bfloat16 values, with holes, constant, and of every size down to the smallest.

    large: also rows of 1e10 and beyond, at which ggml ends the process for types that search in a grid.
    """
    generator = np.random.default_rng(1)
    normal = generator.standard_normal((16, columns)).astype(np.float32)
    rows = [
        (0.02 * normal).view(np.uint32) & np.uint32(0xFFFF0000),
        np.where(generator.random((8, columns)) < 0.03, normal[:8], 0).astype(np.float32).view(np.uint32),
        np.repeat(normal[:8, : columns // 32], 32, axis=1).view(np.uint32),
        (normal[:8] * np.repeat(generator.random((8, columns // 16)) < 0.5, 16, axis=1)).view(np.uint32),
    ]
    for power in (-3, -8, -12, -15, -18, -30, -36, -38, -40, -44, *((10, 17) if large else ())):
        rows.append((normal[:4].astype(np.float64) * 10.0**power).astype(np.float32).view(np.uint32))  # noqa: PERF401
    return np.concatenate([row.astype(np.uint32) for row in rows]).view(np.float32)


def importance(columns: int = 512) -> Floats:
    """float32 [columns], as calibration gives it: positive, of very different sizes."""
    generator = np.random.default_rng(2)
    vector: Floats = (generator.standard_normal(columns) ** 2 + 1e-3).astype(np.float32)
    return vector
