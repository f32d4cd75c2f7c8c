"""Which cases of a long parametrization the suite runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def suite(cases: Sequence[Any], *, first: int, spread: bool = False) -> list[Any]:
    """The cases, all after the first few marked heavy: they go the same way with another value.

    spread: a case is a tuple of several arguments.
    """
    arguments = [case if spread else (case,) for case in cases]
    return [
        *(pytest.param(*case) for case in arguments[:first]),
        *(pytest.param(*case, marks=pytest.mark.heavy) for case in arguments[first:]),
    ]
