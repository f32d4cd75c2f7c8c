"""SIGTERM and SIGINT end a daemon between two steps, or break off a step that says it may be broken off."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Stopped(BaseException):
    """Somebody asked the process to end; not an error, so nothing that catches errors catches it."""


@dataclass(slots=True)
class Stop:
    """Whether the process was asked to end."""

    asked: bool = False
    _may_break: bool = False

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """A step that a signal breaks off by raising Stopped in it; everything else is left to finish."""
        if self.asked:
            raise Stopped
        self._may_break = True
        try:
            yield
        finally:
            self._may_break = False

    def sleep(self, seconds: float) -> None:
        with self.breakable():
            time.sleep(max(0.0, seconds))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 -- signal's own signature
        self.asked = True
        if self._may_break:
            self._may_break = False
            raise Stopped


@contextmanager
def on_signals() -> Iterator[Stop]:
    """A Stop that SIGTERM and SIGINT set; the handlers before come back afterwards."""
    stop = Stop()
    before = {number: signal.signal(number, stop._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
