"""When a checkpoint is due."""

from __future__ import annotations

from hubbot.sweep.streams import CheckpointClock


def test_a_large_first_checkpoint_waits_until_there_is_work_to_save() -> None:
    now = [100.0]
    clock = CheckpointClock(lambda: now[0])
    size = 10**9  # a second, by what is assumed before one was timed

    assert clock.due(0)
    assert not clock.due(size)
    now[0] += 19
    assert not clock.due(size)
    now[0] += 2
    assert clock.due(size)


def test_the_next_one_is_due_by_what_the_last_one_cost() -> None:
    now = [0.0]
    clock = CheckpointClock(lambda: now[0])
    clock.spent(0.5)

    now[0] = 9.0
    assert not clock.due(1)
    now[0] = 10.5
    assert clock.due(10**12)
