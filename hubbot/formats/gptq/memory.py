"""What the solver holds at once; the plan counts by it, without torch."""

from __future__ import annotations

__all__ = ["COPIES"]

COPIES = 8  # of the weights, in float32: themselves, their codes, what is left to round, errors, pulls and temporaries
