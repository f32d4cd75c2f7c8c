"""Faults on order, and the journal of what was asked."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong with the requests that match.

    pattern: regular expression searched in "METHOD /raw/path?query".
    skip: matching requests that pass unharmed first; times: how many are hit then, None: all.
    Exactly what is set happens, in this order: do, slow, status, cut upload, the handler, cut or spoil the answer.
    """

    pattern: str
    skip: int = 0
    times: int | None = 1
    do: Callable[[], object] | None = None  # called before the request is looked at
    slow: float = 0  # seconds before anything else happens
    status: int | None = None  # answer this instead
    retry_after: int | None = None  # seconds, with `status`
    ratelimit: int | None = None  # seconds until the window ends, with `status`
    cut: Literal["before", "upload", "answer", "download"] | None = None
    after: int = 0  # bytes of the body that still pass before an upload or download is cut
    truncate: int | None = None  # the answer's body is silently this much shorter
    corrupt: int | None = None  # this byte of the answer's body is flipped; negative: from the end
    drip: float = 0  # seconds between pieces of 64 KiB of a download
    instead: bytes | None = None  # this body, after the handler has done its work
    headers: dict[str, str] = field(default_factory=dict)  # added to the answer
    trickle: float = 0  # seconds between the bytes of the answer
    endless: bool = False  # the body is sent again and again
    seen: int = 0
    hit: int = 0

    def strikes(self, line: str) -> bool:
        if not re.search(self.pattern, line):
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.times is not None and self.hit >= self.times):
            return False
        self.hit += 1
        return True

    def spoil(self, body: bytes, start: int, total: int) -> bytes:
        """The piece `body`, which begins at byte `start` of an answer of `total` bytes, corrupted where due."""
        if self.corrupt is None:
            return body
        at = (self.corrupt if self.corrupt >= 0 else total + self.corrupt) - start
        if not 0 <= at < len(body):
            return body
        return body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]


@dataclass(frozen=True, slots=True)
class Request:
    number: int
    time: float
    method: str
    path: str  # raw, with the query
    user: str | None
    storage: bool  # asked of the large-file storage
    with_token: bool
    range: str | None
    status: int | None  # None: the connection was cut
    fault: bool

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(slots=True)
class Journal:
    requests: list[Request] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)  # storage requests that carried a token

    def find(self, pattern: str) -> list[Request]:
        return [request for request in list(self.requests) if re.search(pattern, request.line)]

    def count(self, pattern: str) -> int:
        return len(self.find(pattern))

    def clear(self) -> None:
        self.requests.clear()


@dataclass(slots=True)
class Window:
    """A rate limit: at most `quota` in `seconds`, by the wall clock."""

    quota: int
    seconds: float
    times: list[float] = field(default_factory=list)

    def take(self) -> int | None:
        """None: granted; else the seconds until the next is."""
        now = time.monotonic()
        self.times = [moment for moment in self.times if moment > now - self.seconds]
        if len(self.times) >= self.quota:
            return max(1, round(self.times[0] + self.seconds - now))
        self.times.append(now)
        return None

    @property
    def left(self) -> int:
        return max(0, self.quota - len(self.times))
