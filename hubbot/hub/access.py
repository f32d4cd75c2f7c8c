"""The Hub's client with a token of its own, and its errors in our words."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import DisabledRepoError, GatedRepoError, HfHubHTTPError
from huggingface_hub.utils._http import default_client_factory, parse_ratelimit_headers, set_client_factory
from huggingface_hub.utils.tqdm import disable_progress_bars

from hubbot import __version__
from hubbot.errors import (
    BudgetExceeded,
    HubbotError,
    HubFailed,
    PublishConflict,
    SourceNotFound,
    SourceRefused,
    TokenRefused,
)
from hubbot.hub.read.reader import ENDPOINT
from hubbot.log.redact import mask

__all__ = [
    "PASSING",
    "Patience",
    "explained",
    "hub_api",
    "root_cause",
    "seconds_asked",
    "speaking_plainly",
    "status_of",
]

PASSING = frozenset({408, 429, 500, 502, 503, 504})  # statuses that another try may not meet

T = TypeVar("T")


def _client() -> httpx2.Client:
    """The library's client, which by itself would wait for ever for an answer."""
    client = default_client_factory()
    client.timeout = httpx2.Timeout(120.0, connect=15.0, read=300.0)  # seconds; storage joins large uploads in minutes
    return client


set_client_factory(_client)
disable_progress_bars()  # ours are shown


def hub_api(token: str | None, endpoint: str | None) -> HfApi:
    """A client that knows this token alone: never one from the environment or from a login on this machine."""
    return HfApi(
        endpoint=endpoint or ENDPOINT, token=token or False, library_name="hubbot", library_version=__version__
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often, and how long apart, something is tried again while the Hub is unwell."""

    tries: int = 8
    longest: float = 900.0  # seconds; a Hub that asks for more is given up
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random  # 0..1, spreads many bots' retries

    def pause(self, attempt: int, error: BaseException) -> bool:
        """Wait before try `attempt + 1`; False where the error will not pass or patience has ended."""
        if attempt + 1 >= self.tries or not may_pass(error):
            return False
        asked = seconds_asked(error)
        if asked is not None and asked > self.longest:
            return False
        if asked is not None:
            self.sleep(asked + 1 + self.chance())
        else:
            self.sleep(min(60.0, 2.0**attempt) * (0.5 + self.chance()))
        return True

    def insist(self, call: Callable[[], T]) -> T:
        """The result of a call that may be repeated without harm."""
        for attempt in range(self.tries):
            try:
                return call()
            except Exception as error:
                if not self.pause(attempt, error):
                    raise
        raise AssertionError  # the last try returned or raised


def root_cause(error: BaseException) -> BaseException:
    """The Hub's own error inside what the client wraps around it (RuntimeError while uploading, …)."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, (HfHubHTTPError, httpx2.TransportError)):
        seen = seen.__cause__
    return seen or error


def may_pass(error: BaseException) -> bool:
    cause = root_cause(error)
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in PASSING
    return isinstance(cause, (httpx2.TransportError, ConnectionError))


def status_of(error: BaseException) -> int | None:
    cause = root_cause(error)
    return cause.response.status_code if isinstance(cause, HfHubHTTPError) else None


def seconds_asked(error: BaseException) -> float | None:
    """How long the answer asks to wait: the end of the rate limit's window, or Retry-After in seconds."""
    cause = root_cause(error)
    if not isinstance(cause, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(cause.response.headers)
    if cause.response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    after = cause.response.headers.get("retry-after", "")
    return float(after) if after.isdigit() else None


@contextmanager
def speaking_plainly(what: str, *, token: str | None, endpoint: str | None = None) -> Iterator[None]:
    """Turn the client's errors into hubbot's. what: the repo, as people write it."""
    try:
        yield
    except HubbotError:
        raise
    except (HfHubHTTPError, httpx2.HTTPError, ConnectionError, RuntimeError, ValueError) as error:
        raise explained(error, what, token=token, endpoint=endpoint) from None


@contextmanager
def room_needed(folder: Path) -> Iterator[None]:
    """Turn a full disk into BudgetExceeded; what was fetched so far stays and is gone on with."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        msg = f"The disk under {folder} is full ({os.strerror(error.errno)}). Make room and run the same command again; what is there already is kept."
        raise BudgetExceeded(msg) from None


def explained(error: BaseException, what: str, *, token: str | None, endpoint: str | None = None) -> HubbotError:
    """The error of hubbot that says what happened to `what` and what to do next; never with the token in it."""
    cause = root_cause(error)
    host = endpoint or ENDPOINT
    if not isinstance(cause, HfHubHTTPError):
        why = _short(cause, token) or type(cause).__name__
        if isinstance(cause, (httpx2.TransportError, ConnectionError)):
            return HubFailed(f"{host} did not answer about {what} ({why}). Check the network and run it again.")
        return HubFailed(f"The Hub would not take {what}: {why} Mend that and run it again.")
    return _by_status(cause, what, host, _short(cause, token), has_token=bool(token))


def _by_status(error: HfHubHTTPError, what: str, host: str, text: str, *, has_token: bool) -> HubbotError:
    status, code = error.response.status_code, error.response.headers.get("x-error-code")
    if isinstance(error, DisabledRepoError):
        return SourceRefused(f"{what} is disabled on the Hub. Choose another source, or ask the Hub's team why.")
    if isinstance(error, GatedRepoError) or code == "GatedRepo":
        who = "the account of this token" if has_token else "your account, then pass its token in HF_TOKEN"
        return SourceNotFound(f"{what} is gated. Accept its terms at {host}/{what} with {who}, and run it again.")
    said = f"{error.response.headers.get('x-error-message', '')} {error}"
    if status == 401 and ("Invalid credentials" in said or "Invalid user token" in said):
        return TokenRefused(
            "The Hub does not accept the token: it is wrong, expired or revoked. Make a new one and set HF_TOKEN."
        )
    if status == 404 and code == "RevisionNotFound":
        return SourceNotFound(f"{what} has no such revision ({text}). Name a branch, tag or full commit id.")
    if status in (401, 404):
        hint = "" if has_token else " A private one needs a token in HF_TOKEN."
        return SourceNotFound(
            f"The Hub has no {what}, or hides it from this token. Check the name and the token's access.{hint}"
        )
    if status == 403:
        return TokenRefused(
            f"The token may not do this to {what}: {text} Give it write access there, or publish with --publish pr. "
            "`hubbot doctor` shows what it may do."
        )
    if status == 412:
        return PublishConflict(f"{what} was changed by somebody else meanwhile. Run `hubbot publish` again.")
    if status == 429:
        wait = seconds_asked(error)
        when = f" for {wait:.0f} s" if wait is not None else ""
        return HubFailed(f"The Hub's rate limit is used up{when} ({text}). Run it again after that.")
    return HubFailed(
        f"The Hub answered {status} about {what}: {text} Run it again later; nothing half-made is visible."
    )


def _short(error: BaseException, token: str | None) -> str:
    """The last telling line of the Hub's message, without secrets and signed addresses."""
    text = getattr(error, "server_message", None) or str(error)
    lines = [line.strip() for line in mask(str(text), token).splitlines() if line.strip()]
    return " ".join(" ".join(lines[-3:]).split())[:400]
