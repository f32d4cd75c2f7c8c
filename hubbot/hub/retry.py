"""When a call of the Hub is made again: exponential backoff with jitter, or as long as the Hub asks."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._http import parse_ratelimit_headers

from hubbot.errors import HubFailed
from hubbot.hub.session import is_hub, within

__all__ = [
    "TRANSIENT",
    "Retry",
    "TransientFailure",
    "is_odd_answer",
    "is_transient",
    "retry_after",
    "root_cause",
    "status_of",
    "storage_refused",
]

TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})  # statuses that another attempt may not meet

# Where the client refuses what it is given, in words of its own.
_OWN_WORDS = ("huggingface_hub.lfs", "huggingface_hub._commit_api", "huggingface_hub.utils._validators")

T = TypeVar("T")


class TransientFailure(HubFailed):
    """A failure of ours to reach the Hub that another attempt may not meet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often, and how long apart, a call is made while the Hub is unwell."""

    attempts: int = 8
    longest: float = 900.0  # seconds; a Hub that asks for more is given up
    seconds: float = 600.0  # for one attempt, with all the pages of an answer
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random  # 0..1, spreads many bots' attempts

    def __call__(self, call: Callable[[], T], *, seconds: float | None = None) -> T:
        """The result of a call that may be made again without harm. seconds: for one attempt, where it takes longer."""
        for attempt in range(self.attempts):
            try:
                with within(seconds or self.seconds):
                    return call()
            except Exception as error:
                if not self.back_off(attempt, error):
                    raise
        raise AssertionError  # the last attempt returned or raised

    def back_off(self, attempt: int, error: BaseException) -> bool:
        """Wait before attempt `attempt + 1`; False where the error will not pass or there were enough attempts."""
        if attempt + 1 >= self.attempts or not is_transient(error):
            return False
        asked = retry_after(error)
        if asked is not None and asked > self.longest:
            return False
        if asked is not None:
            self.sleep(asked + 1 + self.jitter())
        else:
            self.sleep(min(60.0, 2.0**attempt) * (0.5 + self.jitter()))
        return True


def root_cause(error: BaseException) -> BaseException:
    """The Hub's own error inside what the client wraps around it (RuntimeError while uploading, …)."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, (HfHubHTTPError, httpx2.TransportError)):
        seen = seen.__cause__
    return seen or error


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may fare better."""
    cause = root_cause(error)
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in TRANSIENT or storage_refused(cause)
    return isinstance(cause, (httpx2.TransportError, ConnectionError, TransientFailure)) or is_odd_answer(cause)


def storage_refused(error: HfHubHTTPError) -> bool:
    """A 403 that is not the Hub's: the signed address of a file has expired, and the Hub gives another."""
    return error.response.status_code == 403 and not is_hub(error.response.url)


def is_odd_answer(error: BaseException) -> bool:
    """Whether the client fell over an answer that it could make nothing of: no JSON, or JSON of another shape."""
    if not isinstance(error, (LookupError, TypeError, AttributeError, ValueError, RecursionError)):
        return False
    modules = _modules(error.__traceback__)
    if type(error) is ValueError and modules[-1:] and modules[-1] in _OWN_WORDS:
        return False
    return any(name.partition(".")[0] in ("huggingface_hub", "httpx2") for name in modules)


def _modules(trace: TracebackType | None) -> list[str]:
    found = []
    while trace is not None:
        found.append(str(trace.tb_frame.f_globals.get("__name__", "")))
        trace = trace.tb_next
    return found


def status_of(error: BaseException) -> int | None:
    cause = root_cause(error)
    return cause.response.status_code if isinstance(cause, HfHubHTTPError) else None


def retry_after(error: BaseException) -> float | None:
    """How many seconds the answer asks to wait: the end of the rate limit's window, or Retry-After in seconds."""
    cause = root_cause(error)
    if not isinstance(cause, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(cause.response.headers)
    if cause.response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    after = cause.response.headers.get("retry-after", "")
    return float(after) if after.isdigit() else None
