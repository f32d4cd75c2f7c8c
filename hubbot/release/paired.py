"""How sure a number and a difference of two numbers are: windows of the evaluation text are drawn again. Pure.

Tokens of one window resemble each other, windows do not, so it is windows that are drawn, with all their tokens (cluster
bootstrap). Two variants are compared on the same draws: what both make of a hard window cancels, and a difference is
known far better than either of the two. Percentiles of few windows would be too narrow; their level is widened as
the t distribution of W - 1 degrees would have it (Hesterberg 2015, The American Statistician 69, 371-386, expanded
percentiles). Of fewer than six windows nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hubbot.domain import WindowMeans

__all__ = ["Means", "change_of", "divergence_of", "interval", "surely_less"]

_DRAWS = 4000
_FEWEST = 6  # windows
_CONFIDENCE = 0.95

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """A quantity's mean over the tokens of each window, and how many tokens those are."""

    values: tuple[float, ...]
    tokens: tuple[int, ...]


def divergence_of(windows: WindowMeans | None) -> Means | None:
    """A variant's divergence, window by window; None where nothing is kept of it."""
    return Means(values=windows.kld, tokens=windows.tokens) if windows else None


def change_of(windows: WindowMeans | None) -> Means | None:
    """The change of the log of its perplexity against the base, window by window."""
    return Means(values=windows.change, tokens=windows.tokens) if windows else None


def interval(means: Means | None) -> Interval | None:
    """The 95 % interval of the mean over all tokens; None of too few windows."""
    if means is None or len(means.values) < _FEWEST:
        return None
    import numpy as np

    count = len(means.values)
    weights = np.asarray(means.tokens, dtype=np.float64)
    drawn = _draws(count)
    found = drawn @ (weights * np.asarray(means.values)) / (drawn @ weights)
    low, high = np.quantile(found, _levels(count))
    return float(low), float(high)


def surely_less(one: Means | None, other: Means | None) -> bool:
    """Whether the whole interval of one's difference from the other is below zero.

    Both are of the same text. Never where they were cut into other windows, or one of them is not known.
    """
    if one is None or other is None or one.tokens != other.tokens:
        return False
    differences = tuple(a - b for a, b in zip(one.values, other.values, strict=True))
    found = interval(Means(values=differences, tokens=one.tokens))
    return found is not None and found[1] < 0


@lru_cache(maxsize=2)
def _draws(count: int) -> npt.NDArray[np.float64]:
    """How often each window is drawn: [draws, windows]. The same for everything that is compared, and in every run."""
    import numpy as np

    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_DRAWS).astype(np.float64)


def _levels(count: int) -> Sequence[float]:
    """The two percentiles that hold the confidence."""
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * _t_quantile(1 - (1 - _CONFIDENCE) / 2, count - 1))
    return tail, 1 - tail


def _t_quantile(level: float, degrees: int) -> float:
    """Of Student's t: Fisher and Cornish's expansion around the normal, within 0.1 % from five degrees on at 97.5 %."""
    z = NormalDist().inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / float(degrees) ** power for power, term in enumerate(terms, start=1))
