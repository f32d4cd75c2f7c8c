"""SIGTERM and SIGINT end a daemon between two steps, or break off a step that says it may be broken off."""

from __future__ import annotations

import signal
import threading
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
    _ending: BaseException | None = None

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

    def end_step(self, error: BaseException) -> None:
        """From another thread: break off the step that runs now, if it may be, by raising an error in it."""
        if signal.getsignal(signal.SIGUSR1) == self._on_end:  # else it would end the process
            self._ending = error
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def _on_end(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 -- signal's own signature
        error, self._ending = self._ending, None
        if error and self._may_break:
            self._may_break = False
            raise error

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 -- signal's own signature
        self.asked = True
        if self._may_break:
            self._may_break = False
            raise Stopped


@contextmanager
def on_signals() -> Iterator[Stop]:
    """A Stop that SIGTERM and SIGINT set, and SIGUSR1 for `end_step`; the handlers before come back afterwards."""
    stop = Stop()
    handlers = {signal.SIGTERM: stop._on_signal, signal.SIGINT: stop._on_signal, signal.SIGUSR1: stop._on_end}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
