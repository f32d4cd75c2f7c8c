"""The clock of a job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubbot import log
from hubbot.machine.shortage import translated_shortages

__all__ = ["Clock"]


class Clock:
    """Tells of every stage of a job as it begins, and knows afterwards what each took."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.seconds: dict[str, float] = {}  # by stage; stages of one name are added up

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Raises BudgetExceeded where disk or memory ran out in it."""
        start = time.monotonic()
        with log.stage(name), translated_shortages(self._out):
            yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
