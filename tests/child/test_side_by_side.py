"""Tasks that run beside each other: their cores, their answers, and one that fails."""

import os
import time
from threading import Barrier

import pytest

from hubbot.child.side_by_side import side_by_side


def test_tasks_run_at_the_same_time_each_on_cores_of_its_own():
    met, before = Barrier(2), os.sched_getaffinity(0)

    places = []

    def meet(task: str, place: str) -> set[int]:
        places.append(place)
        met.wait(20)  # seconds; passes only where both are under way
        return os.sched_getaffinity(0)

    with side_by_side(meet, ["a", "b"], ["here", "there"]) as answers:
        cores = dict(answers)
    assert cores.keys() == {"a", "b"}
    assert cores["a"] | cores["b"] == before
    assert len(before) == 1 or not cores["a"] & cores["b"]
    assert os.sched_getaffinity(0) == before
    assert sorted(places) == ["here", "there"]


def test_what_a_task_raises_is_raised_and_those_that_wait_are_given_up():
    begun = []

    def work(task: int, _place: str) -> None:
        begun.append(task)
        if task == 0:
            raise ValueError("the first one fails")
        time.sleep(0.01)

    with pytest.raises(ValueError, match="the first one fails"), side_by_side(work, range(10_000), ["here"]) as answers:
        list(answers)
    assert len(begun) < 10_000
