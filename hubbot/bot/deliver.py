"""Hands accepted events on: to a GitHub repository_dispatch or a Hugging Face Job, at least once each.

The local queue needs no handing on: `hubbot watch` takes the events from the state file.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from hubbot.bot.watch_settings import ServeSettings
from hubbot.errors import BadSettings, HubbotError, HubFailed
from hubbot.ledger import events
from hubbot.ledger.events import Event
from hubbot.ledger.store import Ledger, open_ledger
from hubbot.log import say
from hubbot.mask import mask

PAUSE = 1.0  # seconds between looks for new events
TIMEOUT = 30.0  # seconds

Deliver: TypeAlias = Callable[[Event], None]
"""Hands one event on. Raises HubbotError where it did not arrive for sure."""


def github(serve: ServeSettings, token: str | None) -> Deliver:
    """Deliver by repository_dispatch: the workflow reads `client_payload` {model, revision, ref, key}.

    Raises BadSettings without a repository or a token.
    """
    if not serve.github_repo:
        raise BadSettings(
            "serve.github_repo names no repository. Set it to owner/name, as --github-repo or in hubbot.toml."
        )
    if not token:
        raise BadSettings(
            "GITHUB_TOKEN is not set; delivery to GitHub needs a token that may write the contents of that repository."
        )
    address = f"{serve.github_url.rstrip('/')}/repos/{serve.github_repo}/dispatches"
    if not address.startswith(("https://", "http://127.0.0.1", "http://localhost")):
        raise BadSettings(f"serve.github_url is {serve.github_url!r}; a token goes out over https only.")

    opener = urllib.request.build_opener(_NoRedirect)

    def deliver(event: Event) -> None:
        payload = {"model": event.model, "revision": event.sha, "ref": event.ref, "key": event.key}
        body = json.dumps({"event_type": serve.github_event, "client_payload": payload}).encode()
        request = urllib.request.Request(  # noqa: S310 -- the scheme is checked above
            address,
            data=body,
            method="POST",
            headers={
                "Authorization": f"Bearer {token}",
                "Accept": "application/vnd.github+json",
                "Content-Type": "application/json",
                "User-Agent": "hubbot",
            },
        )
        try:
            with opener.open(request, timeout=TIMEOUT) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            raise HubFailed(f"GitHub answered {error.code} to the dispatch to {serve.github_repo}.") from None
        except OSError as error:
            raise HubFailed(f"GitHub could not be reached at {serve.github_url}: {error}.") from None

    return deliver


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would send the token along to wherever it is sent on."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002 -- urllib's signature
        return None


def hosted_job(command: Callable[[Event], Sequence[str]], start: Callable[[Sequence[str]], object]) -> Deliver:
    """Deliver by starting a Hugging Face Job. command: of an event; start: starts it, or raises HubbotError."""

    def deliver(event: Event) -> None:
        start(command(event))

    return deliver


def deliver_waiting(ledger: Ledger, deliver: Deliver, *, secrets: Sequence[str] = ()) -> int:
    """Hand on what is due. Of several events of one model only the newest goes. Returns how many went."""
    due = events.waiting(ledger)
    newest = {accepted.event.model: accepted for accepted in due}
    went = 0
    for accepted in due:
        last = newest[accepted.event.model]
        if accepted is not last:
            continue
        try:
            deliver(accepted.event)
        except HubbotError as error:
            events.undelivered(ledger, accepted, error, secrets=secrets)
            say(mask(f"{accepted.event.model}: {error}", *secrets))
            continue
        events.delivered(ledger, [other.id for other in due if other.event.model == accepted.event.model])
        went += 1
    return went


@contextmanager
def delivering(path: Path, deliver: Deliver, *, secrets: Sequence[str] = ()) -> Iterator[None]:
    """A thread that hands events on as they come; what is left stays in the state file for the next start."""
    ended = threading.Event()

    def run() -> None:
        with open_ledger(path) as ledger:
            while not ended.wait(PAUSE):
                try:
                    deliver_waiting(ledger, deliver, secrets=secrets)
                except HubbotError as error:
                    say(mask(str(error), *secrets))

    thread = threading.Thread(target=run, name="deliver")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
