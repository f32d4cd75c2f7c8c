"""Intervals by drawing windows again, and what may be said of a difference."""

from __future__ import annotations

import numpy as np
import pytest

from hubbot.release.paired import Means, interval, surely_less

WINDOWS = 40


def means(values: np.ndarray | list[float]) -> Means:
    return Means(values=tuple(float(value) for value in values), tokens=(127,) * len(values))


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1)
    for count in (6, 12, WINDOWS):  # skewed, as divergences of windows are
        found = [interval(means(draws.gamma(4, 0.25, count))) for _ in range(300)]
        held = sum(low <= 1 <= high for low, high in filter(None, found))
        assert 270 <= held <= 297, count


def test_windows_count_by_their_tokens() -> None:
    uneven = Means(values=(*[0.1] * 8, 9.0), tokens=(*[1000] * 8, 1))
    found = interval(uneven)
    assert found is not None
    assert found[1] < 0.2


def test_a_difference_that_two_intervals_hide_shows_on_the_same_windows() -> None:
    hard = np.random.default_rng(2).gamma(1, 1, WINDOWS)
    one, other = means(hard), means(hard * 1.02 + 0.01)
    first, second = interval(one), interval(other)
    assert first is not None
    assert second is not None
    assert first[1] > second[0]
    assert surely_less(one, other)
    assert not surely_less(other, one)


def test_noise_is_no_difference() -> None:
    draws = np.random.default_rng(3)
    said = sum(surely_less(means(draws.normal(1, 1, WINDOWS)), means(draws.normal(1, 1, WINDOWS))) for _ in range(200))
    assert said <= 12  # one end of a 95 % interval: 2.5 %


@pytest.mark.parametrize("other", [None, means([2.0] * 5), Means(values=(2.0,) * WINDOWS, tokens=(9,) * WINDOWS)])
def test_nothing_is_said_of_other_windows_or_too_few(other: Means | None) -> None:
    assert not surely_less(means([1.0] * WINDOWS), other)
    assert not surely_less(means([1.0] * 5), means([2.0] * 5))
    assert surely_less(means([1.0] * WINDOWS), means([2.0] * WINDOWS))
