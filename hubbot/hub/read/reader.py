"""Reading the Hub politely: conditional, paced by its rate limits, patient with its faults."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx2
from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status, parse_ratelimit_headers

from hubbot import __version__
from hubbot.errors import HubbotError, HubFailed, SourceNotFound, TokenRefused
from hubbot.log.redact import mask

ENDPOINT = "https://huggingface.co"
TRIES = 6
LONGEST_WAIT = 900.0  # seconds; a Hub that wants more than this is asked again by the next poll
TIMEOUT = 30.0  # seconds
LARGEST_ANSWER = 64 * 2**20  # bytes

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_MISSING = frozenset({"RepoNotFound", "RevisionNotFound", "EntryNotFound"})

Params: TypeAlias = Mapping[str, str | int | bool | Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """An answer of the Hub; `body` is None where nothing changed since the ETag that was sent."""

    body: Any
    etag: str | None
    next: str | None  # address of the next page


@dataclass(slots=True, kw_only=True)
class Reader:
    """One reader of one Hub; counts its requests and waits as long as the Hub asks."""

    token: str | None
    endpoint: str = ENDPOINT
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random  # 0..1, spreads many bots' retries
    requests: int = 0
    _open_at: float = field(default=0.0)  # monotonic: when the rate limit's next window opens

    def get(self, path: str, params: Params | None = None, *, etag: str | None = None) -> Page:
        """GET an address of the API, or a whole one as it came from `Page.next`.

        Raises SourceNotFound for what is missing or hidden, TokenRefused, HubFailed when the Hub refuses or stays away.
        """
        response = self._ask(path, params, {"If-None-Match": etag} if etag else {})
        if response.status_code == 304:
            return Page(body=None, etag=etag, next=None)
        link = response.links.get("next", {}).get("url")
        return Page(body=_json(response), etag=response.headers.get("etag"), next=link)

    def token_works(self) -> bool:
        """Whether the Hub knows the token; True also while the Hub cannot be asked."""
        try:
            self.get("/api/whoami-v2")
        except (TokenRefused, SourceNotFound):
            return False
        except HubFailed:
            return True
        return True

    def file(self, repo: str, revision: str, path: str, *, most: int = LARGEST_ANSWER) -> bytes | None:
        """A file of a model repo, or None where there is none. Raises HubFailed for one above `most` bytes."""
        try:
            content: bytes = self._ask(f"/{repo}/resolve/{revision}/{path}", None, {}, most=most).content
        except SourceNotFound:
            return None
        return content

    def _ask(
        self, path: str, params: Params | None, headers: dict[str, str], *, most: int = LARGEST_ANSWER
    ) -> httpx2.Response:
        url = path if path.startswith(("http://", "https://")) else self.endpoint + path
        if not url.startswith(self.endpoint + "/"):  # a next link must not carry the token elsewhere
            raise HubFailed(
                f"The Hub sent us on to another host ({url[:80]}); nothing was asked there. Try again later."
            )
        problem = ""
        for attempt in range(TRIES):
            self._wait_for_window()
            try:
                response = self._send(url, params, headers, most)
            except httpx2.TransportError as error:
                problem, wait = f"no answer ({type(error).__name__})", None
            except (
                httpx2.RequestError,
                httpx2.InvalidURL,
            ) as error:  # redirects without end, a spoilt encoding or address
                why = type(error).__name__
                raise HubFailed(f"The Hub's answer at {path[:200]} is of no use ({why}). Try again later.") from None
            else:
                if response.status_code not in _PASSING:
                    return self._checked(response, path)
                problem, wait = f"it answered {response.status_code}", _asked_to_wait(response)
            if attempt + 1 < TRIES:
                self._pause(attempt, wait, path)
        raise HubFailed(f"The Hub could not be read at {path}: {problem}, {TRIES} times. Run it again later.")

    def _send(self, url: str, params: Params | None, headers: dict[str, str], most: int) -> httpx2.Response:
        self.requests += 1
        own = build_hf_headers(token=self.token or False, library_name="hubbot", library_version=__version__)
        with get_session().stream(
            "GET", url, params=params, headers={**own, **headers}, timeout=TIMEOUT, follow_redirects=True
        ) as answer:
            response = _whole(answer, most)
        limit = parse_ratelimit_headers(response.headers)
        if limit is not None and limit.remaining == 0:
            self._open_at = time.monotonic() + limit.reset_in_seconds
        return response

    def _checked(self, response: httpx2.Response, path: str) -> httpx2.Response:
        if response.status_code == 304:
            return response
        try:
            hf_raise_for_status(response)
        except HfHubHTTPError as error:
            raise _refusal(error, response, path, self.token) from None
        return response

    def _wait_for_window(self) -> None:
        wait = self._open_at - time.monotonic()
        if wait > 0:
            self._open_at = 0.0
            self._wait(wait, "its rate limit")

    def _pause(self, attempt: int, asked: float | None, path: str) -> None:
        if asked is None:
            self.sleep(min(30.0, 2.0**attempt) * (0.5 + self.chance()))
        else:
            self._wait(asked, path)

    def _wait(self, seconds: float, what: str) -> None:
        if seconds > LONGEST_WAIT:
            raise HubFailed(f"The Hub asks to wait {seconds:.0f} s ({what}). Run it again after that.")
        self.sleep(seconds + 1 + 2 * self.chance())


def _whole(answer: httpx2.Response, most: int) -> httpx2.Response:
    """The answer with its body read. Raises HubFailed for one above `most` bytes, without reading on."""
    body = bytearray()
    for piece in answer.iter_bytes():
        body += piece
        if len(body) > most:
            msg = f"The Hub's answer at {answer.url.path} has more than {most:,} bytes, which is no honest one. Look at that repo."
            raise HubFailed(msg)
    plain = [
        (name, value)
        for name, value in answer.headers.multi_items()
        if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")  # the body is decoded
    ]
    return httpx2.Response(answer.status_code, headers=plain, content=bytes(body), request=answer.request)


def _refusal(error: HfHubHTTPError, response: httpx2.Response, path: str, token: str | None) -> HubbotError:
    lines = mask(str(error), token).strip().splitlines()
    text = lines[-1][:300] if lines else ""
    status = response.status_code
    wrong_token = status == 401 and "Invalid credentials" in response.headers.get("x-error-message", "") + text
    if wrong_token:
        return TokenRefused(f"The Hub does not accept the token (at {path}). Make a new one and set HF_TOKEN.")
    if status in (401, 404) or response.headers.get("x-error-code") in _MISSING:
        return SourceNotFound(f"The Hub has no {path}, or hides it from this token. Check the name. {text}")
    return HubFailed(f"The Hub refused {path} with {status}: {text} See `hubbot doctor` for what the token may do.")


def _asked_to_wait(response: httpx2.Response) -> float | None:
    """Seconds that the answer asks for: the rate limit's window, or Retry-After in seconds."""
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    after = response.headers.get("retry-after", "")
    return float(after) if after.isdigit() else None


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        raise HubFailed(
            f"The Hub answered something that is no JSON at {response.url.path}. Try again later."
        ) from None
