"""What a run spent its time on adds up to the time it took."""

from __future__ import annotations

import pytest

from hubbot.job.compose import spent

STEPS = [{"calibration": 3.0, "Q8_0": 1.0}, {"calibration": 2.0}]


def test_the_sweeps_time_is_told_by_its_steps_and_counted_once() -> None:
    told = spent({"plan": 1.0, "sweep": 10.0, "load check": 2.0}, STEPS)
    assert list(told) == ["plan", "sweep: calibration", "sweep: Q8_0", "sweep: rest", "load check"]
    assert told["sweep: calibration"] == 5
    assert sum(told.values()) == pytest.approx(13)


def test_a_sweep_that_went_on_after_a_kill_counts_what_the_killed_run_spent() -> None:
    assert sum(spent({"sweep": 1.0}, STEPS).values()) == pytest.approx(6)
