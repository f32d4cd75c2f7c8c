"""Sweeps of tiny models over random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hubbot.formats.protocol import Format
from hubbot.model import part_layout, read_facts
from hubbot.sweep.walk import SweepInput, SweepResult, sweep
from hubbot.sweep.windows import Windows

__all__ = ["LENGTH", "run_sweep", "windows"]

LENGTH = 48


def windows(seed: int, count: int) -> Windows:
    tokens = torch.randint(3, 400, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return Windows(tokens=tokens, first_target=(1,) * count)


def run_sweep(folder: Path, work: Path, formats: Sequence[Format], **more: Any) -> SweepResult:
    """more: of SweepInput, its texts among them."""
    facts = read_facts(folder)
    places = {"folder": folder, "tensors": facts.tensors, "parts": part_layout(facts), "work": work}
    return sweep(SweepInput(**{**places, "device": torch.device("cpu"), **more}), formats)
