"""GitHub's API as one repository and one token see it: bounded, over https, no token along a redirect."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from hubbot.domain import HUB_ID
from hubbot.errors import BadSettings, HubFailed

__all__ = ["API", "Answered", "GitHub"]

API = "https://api.github.com"
TIMEOUT = 30.0  # seconds without a byte
LONGEST = 300.0  # seconds for an answer
PAGE = 100  # entries of a list in one answer
MOST_PAGES = 20
LARGEST_ANSWER = 16 * 2**20  # bytes: a page of the longest comments that there can be


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would send the token along to wherever it is sent on."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002 -- urllib's signature
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True, slots=True, kw_only=True)
class GitHub:
    """One repository and who asks. Raises BadSettings for a repository that is none or an address without https."""

    repo: str  # owner/name
    token: str = field(repr=False)
    url: str = API

    def __post_init__(self) -> None:
        if not HUB_ID.fullmatch(self.repo):
            raise BadSettings(f"{self.repo!r} is no repository of GitHub. Name it as owner/name.")
        if not self.url.startswith(("https://", "http://127.0.0.1", "http://localhost")):
            raise BadSettings(f"The address of GitHub's API is {self.url!r}; a token goes out over https only.")

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer's JSON, None for an empty one. path: below /repos/owner/name. Raises HubFailed."""
        return self._send(method, path, body)[0]

    def pages(self, path: str) -> list[Mapping[str, Any]]:
        """The entries of a list, page after page. Raises HubFailed too for one that is too long to be read."""
        found: list[Mapping[str, Any]] = []
        for number in range(1, MOST_PAGES + 1):
            page = self.ask("GET", f"{path}?per_page={PAGE}&page={number}")
            if not isinstance(page, list):
                raise HubFailed(f"GitHub's answer at {path} is no list. Run it again later.")
            found += [entry for entry in page if isinstance(entry, dict)]
            if len(page) < PAGE:
                return found
        raise HubFailed(f"{path} has more than {MOST_PAGES * PAGE:,} entries, which is no request any more. Open a new issue.")  # fmt: skip

    def time(self) -> str:
        """What GitHub's clock shows, as its answers write times: 2026-01-31T12:00:00Z."""
        date = parsedate_to_datetime(self._send("GET", "", None)[1])
        return date.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[Any, str]:
        request = urllib.request.Request(  # noqa: S310 -- the scheme is checked above
            f"{self.url.rstrip('/')}/repos/{self.repo}{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={
                "Authorization": f"Bearer {self.token}",
                "Accept": "application/vnd.github+json",
                "Content-Type": "application/json",
                "User-Agent": "hubbot",
            },
        )
        try:
            with _OPENER.open(request, timeout=TIMEOUT) as answer:
                text, date = _read(answer, path), answer.headers.get("Date", "")
            return (json.loads(text) if text.strip() else None), date
        except urllib.error.HTTPError as error:
            error.close()
            raise Answered(f"GitHub answered {error.code} to {method} {path} of {self.repo}.", error.code) from None
        except ValueError:
            raise HubFailed(f"GitHub's answer at {path} is no JSON. Run it again later.") from None
        except (OSError, http.client.HTTPException) as error:
            why = str(error) or type(error).__name__
            raise HubFailed(f"GitHub could not be reached at {self.url}: {why}.") from None


def _read(answer: http.client.HTTPResponse, path: str) -> bytes:
    """The whole answer. Raises HubFailed where it is too large, or comes too slowly to be waited for."""
    text, until = bytearray(), time.monotonic() + LONGEST
    while piece := answer.read1(2**16):
        text += piece
        if len(text) > LARGEST_ANSWER:
            raise HubFailed(
                f"GitHub's answer at {path} has more than {LARGEST_ANSWER:,} bytes, which is no honest one."
            )
        if time.monotonic() > until:
            raise HubFailed(f"GitHub's answer at {path} took more than {LONGEST:.0f} s. Run it again later.")
    return bytes(text)


class Answered(HubFailed):
    """GitHub said no, with a status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
