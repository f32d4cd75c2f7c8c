"""Reading the Hub politely: conditional, within its rate limit, bounded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx2
from huggingface_hub import get_session
from huggingface_hub.utils._http import hf_raise_for_status, parse_ratelimit_headers

from hubbot.errors import HubFailed, SourceNotFound, TokenRefused
from hubbot.hub.client import Hub
from hubbot.hub.failures import translated_hub_errors

__all__ = ["LARGEST_ANSWER", "Page", "Params", "Reader"]

TIMEOUT = 30.0  # seconds
LARGEST_ANSWER = 64 * 2**20  # bytes

Params: TypeAlias = Mapping[str, str | int | bool | Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """An answer of the Hub; `body` is None where nothing changed since the ETag that was sent."""

    body: Any
    etag: str | None
    next: str | None  # address of the next page


@dataclass(slots=True)
class Reader:
    """One reader of one Hub; counts its requests and waits as long as the Hub asks."""

    hub: Hub
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
        url = path if path.startswith(("http://", "https://")) else self.hub.endpoint + path
        if not url.startswith(self.hub.endpoint + "/"):  # a next link must not carry the token elsewhere
            raise HubFailed(
                f"The Hub sent us on to another host ({url[:80]}); nothing was asked there. Try again later."
            )
        with translated_hub_errors(path.lstrip("/")[:200], self.hub):
            return self.hub.retry(lambda: self._send(url, params, headers, most))

    def _send(self, url: str, params: Params | None, headers: dict[str, str], most: int) -> httpx2.Response:
        self._wait_for_window()
        self.requests += 1
        with get_session().stream(
            "GET", url, params=params, headers={**self.hub.headers, **headers}, timeout=TIMEOUT, follow_redirects=True
        ) as answer:
            response = _whole(answer, most)
        limit = parse_ratelimit_headers(response.headers)
        if limit is not None and limit.remaining == 0:
            self._open_at = time.monotonic() + limit.reset_in_seconds
        if response.status_code != 304:
            hf_raise_for_status(response)
        return response

    def _wait_for_window(self) -> None:
        wait = self._open_at - time.monotonic()
        if wait <= 0:
            return
        self._open_at = 0.0
        if wait > self.hub.retry.longest:
            raise HubFailed(f"The Hub asks to wait {wait:.0f} s (its rate limit). Run it again after that.")
        self.hub.retry.sleep(wait + 1 + self.hub.retry.jitter())


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


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        raise HubFailed(
            f"The Hub answered something that is no JSON at {response.url.path}. Try again later."
        ) from None
