"""Axes that put every value where it is, below zero too."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubbot.cards.axis import axis_of, plain

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


def test_what_is_above_zero_stands_on_a_logarithmic_axis() -> None:
    axis = axis_of([0.001, 0.01, 0.1], [0, 0, 0], 400, 100)
    assert axis(0.001) - axis(0.01) == pytest.approx(axis(0.01) - axis(0.1))


def test_a_change_of_nothing_and_a_fall_have_places_of_their_own() -> None:
    axis = axis_of([-0.0011, 0.0, 0.0002, 0.0061], [0.0006] * 4, 400, 100)
    assert axis(-0.0011) > axis(0.0) > axis(0.0002) > axis(0.0061)
    assert axis(0.0001) - axis(0.0) == pytest.approx(axis(0.0) - axis(-0.0001))
    assert 0.0 in axis.ticks(24)
    assert min(axis.ticks(24)) < 0 < max(axis.ticks(24))


@given(st.lists(st.tuples(FINITE, FINITE.map(abs)), min_size=1, max_size=9))
def test_any_values_keep_their_order_and_ticks_their_distance(measured: list[tuple[float, float]]) -> None:
    values, errors = [value for value, _ in measured], [error for _, error in measured]
    axis = axis_of(values, errors, 400, 100)
    places = [axis(value) for value in sorted(values)]
    assert places == sorted(places, reverse=True)
    assert all(100 <= place <= 400 for place in places)
    ticks = axis.ticks(24)
    assert all(axis(one) - axis(two) >= 24 for one, two in itertools.pairwise(ticks))


@pytest.mark.parametrize(
    ("value", "shown"), [(0.00005, "0.00005"), (0.5, "0.5"), (0, "0"), (-20.0, "-20"), (1e-12, "1e-12")]
)
def test_round_numbers_have_no_exponent_where_one_reads_them_without(value: float, shown: str) -> None:
    assert plain(value) == shown
    assert math.isclose(float(shown), value)
