"""The rate limit of commits: the Hub allows about 128 an hour to one account."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hubbot.errors import HubFailed

__all__ = ["RateLimit"]


@dataclass(slots=True, kw_only=True)
class RateLimit:
    """Commits within an hour; whoever commits acquires one first.

    spent: when commits were made, seconds since the epoch, oldest first; a bot fills it from its state
    and stores what `on_commit` is called with. allowed: asked before anything is shown to readers; raises where
    publishing is not wanted any more.
    """

    per_hour: int = 100
    longest: float = 900.0  # seconds to wait for room; beyond that publishing is refused for now
    spent: list[float] = field(default_factory=list)
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    on_commit: Callable[[float], None] = field(default=lambda _: None)
    allowed: Callable[[], None] = field(default=lambda: None)

    def acquire(self) -> None:
        """Wait until a commit is within the limit. Raises HubFailed where that takes too long, and what `allowed` raises."""
        while (wait := self._wait()) > 0:
            if wait > self.longest:
                msg = f"{self.per_hour} commits were made in the last hour, the whole budget. Publish again in {wait / 60:.0f} minutes."
                raise HubFailed(msg)
            self.sleep(wait)
        now = self.clock()
        self.spent.append(now)
        self.on_commit(now)

    def _wait(self) -> float:
        """Seconds until the next commit is within the limit."""
        self.allowed()
        now = self.clock()
        # a clock that went back must not freeze the bot: times to come do not count
        self.spent = [moment for moment in self.spent if now - 3600 < moment <= now]
        return 0.0 if len(self.spent) < self.per_hour else self.spent[-self.per_hour] + 3600 - now
