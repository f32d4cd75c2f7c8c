"""Reading the Hub politely: conditional, within its rate limit, bounded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx2
from huggingface_hub import get_session
from huggingface_hub.utils._http import hf_raise_for_status, parse_ratelimit_headers

from hubbot.errors import HubFailed, SourceNotFound, TokenRefused
from hubbot.hub.client import Hub
from hubbot.hub.failures import RequestRefused, translated_hub_errors
from hubbot.hub.session import LARGEST_ANSWER, bounded

__all__ = ["Page", "Params", "Reader"]

TIMEOUT = 30.0  # seconds without a byte
MOST_PAGES = 20_000  # of one list

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
        if response.status_code == 304 and etag:
            return Page(body=None, etag=etag, next=None)
        link = response.links.get("next", {}).get("url")
        body = _json(response)
        if body is None:
            raise HubFailed(f"The Hub answered nothing at {response.url.path}. Run it again later.")
        return Page(body=body, etag=response.headers.get("etag"), next=link)

    def pages(self, path: str, params: Params | None = None, *, etag: str | None = None) -> Iterator[Page]:
        """The pages of a list, each with a list for its body; a single page without body where nothing changed.

        Raises HubFailed too for what is no list, and for pages that go round or have no end.
        """
        page, read = self.get(path, params, etag=etag), {path}
        while True:
            if page.body is not None and not isinstance(page.body, list):
                msg = f"The Hub's answer at {path[:200]} is no list. Nothing was concluded from it; run it again later."
                raise HubFailed(msg)
            yield page
            if page.next is None:
                return
            if page.next in read or len(read) > MOST_PAGES:
                msg = (
                    f"The Hub's pages at {path[:200]} have no end. Nothing was concluded from them; run it again later."
                )
                raise HubFailed(msg)
            read.add(page.next)
            page = self.get(page.next)

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
            msg = f"The Hub sent us on to another host ({url[:80]}); nothing was asked there. Try again later."
            raise RequestRefused(msg)
        with translated_hub_errors(path.lstrip("/")[:200], self.hub):
            return self.hub.retry(lambda: self._send(url, params, headers, most))

    def _send(self, url: str, params: Params | None, headers: dict[str, str], most: int) -> httpx2.Response:
        self._wait_for_window()
        self.requests += 1
        with get_session().stream(
            "GET", url, params=params, headers={**self.hub.headers, **headers}, timeout=TIMEOUT, follow_redirects=True
        ) as answer:
            response = bounded(answer, most)
        limit = parse_ratelimit_headers(response.headers)
        if limit is not None and limit.remaining == 0:
            self._open_at = time.monotonic() + limit.reset_in_seconds
        if response.status_code != 304 or "If-None-Match" not in headers:
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


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        raise HubFailed(
            f"The Hub answered something that is no JSON at {response.url.path}. Try again later."
        ) from None
