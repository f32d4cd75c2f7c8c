"""When a checkpoint is due, and what it holds."""

from __future__ import annotations

from pathlib import Path

import torch

from hubbot.domain import ExpertUse
from hubbot.sweep.streams import CheckpointClock, Progress, Streams, load_checkpoint, save_checkpoint


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


def test_a_checkpoint_gives_back_what_a_sweep_had_measured(tmp_path: Path) -> None:
    progress = Progress(
        parts_done=2,
        layer_errors={"fine": {"w": 0.5}},
        experts=[ExpertUse(block=1, experts=4, few=1, least=0.0, median=0.25)],
    )
    save_checkpoint(tmp_path / "s.safetensors", Streams({"base": torch.ones(1, 2, 3)}), progress)
    found = load_checkpoint(tmp_path / "s.safetensors")
    assert found
    assert found[1] == progress
    assert torch.equal(found[0].hidden["base"], torch.ones(1, 2, 3))
