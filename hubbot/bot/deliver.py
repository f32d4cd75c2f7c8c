"""Hands models on that webhooks told of: to a GitHub repository_dispatch or a Hugging Face Job, at least once each.

What goes out is the head of main as the Hub shows it then, judged by the policy of [watch]: the order in
which deliveries arrive says nothing about what is newest, and a README or a quantized repo starts nothing.
The local queue needs no handing on: `hubbot watch` takes the events from the state file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from hubbot.bot.github import TIMEOUT, GitHub
from hubbot.bot.ledger import events
from hubbot.bot.ledger.events import Accepted
from hubbot.bot.ledger.store import Ledger, open_ledger
from hubbot.bot.round import UNREADABLE
from hubbot.bot.verdicts import Action, Verdict
from hubbot.errors import BadSettings, HubFailed
from hubbot.log import say
from hubbot.log.redact import redact
from hubbot.settings.watch import ServeSettings

PAUSE = 1.0  # seconds between looks for new events
LONGEST_PAUSE = 300.0  # after failures in a row

Ask: TypeAlias = Callable[[Ledger, str], Verdict | None]
"""The verdict on a model as it is now; None where it is gone. Raises HubbotError."""

Give: TypeAlias = Callable[[Verdict], None]
"""Hands one model on. Raises HubbotError where it did not arrive for sure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where models go that webhooks told of."""

    taker: str  # github | job
    ask: Ask
    give: Give
    remember: Callable[[Ledger, Verdict], None]  # that it was handed on
    tags: bool = False  # whether a tag makes a model new
    quiet: float = 0.0  # seconds without another event of a model before it goes out
    secrets: Sequence[str] = ()


def github(serve: ServeSettings, token: str | None) -> Give:
    """Give by repository_dispatch: the workflow reads `client_payload` {model, revision, cause}.

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
    hub = GitHub(repo=serve.github_repo, token=token, url=serve.github_url)

    def give(verdict: Verdict) -> None:
        payload = {"model": verdict.model, "revision": verdict.revision, "cause": verdict.rule}
        hub.ask("POST", "/dispatches", {"event_type": serve.github_event, "client_payload": payload})

    return give


def hosted_job(command: Callable[[Verdict], Sequence[str]], start: Callable[[Sequence[str]], object]) -> Give:
    """Give by starting a Hugging Face Job. command: of a verdict; start: starts it, or raises HubbotError."""

    def give(verdict: Verdict) -> None:
        start(command(verdict))

    return give


def deliver_waiting(ledger: Ledger, route: Route) -> int:
    """Hand on what is due, one model at a time. Returns how many went."""
    went = 0
    for model, group in events.waiting(ledger, taker=route.taker, quiet=route.quiet).items():
        try:
            went += _hand_on(ledger, model, group, route)
        except Exception as error:  # noqa: BLE001 -- one model's defect must not keep the others back
            events.undelivered(ledger, group, error, secrets=route.secrets)
            say(redact(f"{model}: {str(error) or type(error).__name__}", *route.secrets))
        else:
            events.delivered(ledger, group)
    return went


def _hand_on(ledger: Ledger, model: str, group: Sequence[Accepted], route: Route) -> bool:
    """Whether the model went out; where it did not, nothing is left to do about its events."""
    if not route.tags and all(accepted.event.ref.startswith("refs/tags/") for accepted in group):
        return False
    verdict = route.ask(ledger, model)
    if verdict is None:
        return False
    if verdict.rule == UNREADABLE:
        raise HubFailed(verdict.reason)
    if verdict.action is not Action.RUN:
        say(f"{model}: {verdict.rule}: {verdict.reason}")
        return False
    route.give(verdict)
    route.remember(ledger, verdict)
    return True


@contextmanager
def delivering(path: Path, route: Route) -> Iterator[threading.Thread]:
    """A thread that hands events on as they come; what is left stays in the state file for the next start."""
    ended = threading.Event()
    thread = threading.Thread(target=_deliver_until, args=(ended, path, route), name="deliver", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        ended.set()
        thread.join(TIMEOUT)  # at most one request: what it leaves undone is done by the next start


def _deliver_until(ended: threading.Event, path: Path, route: Route) -> None:
    """Whatever fails is said and tried again, less and less often."""
    pause = PAUSE
    while not ended.wait(pause):
        try:
            with open_ledger(path) as ledger:
                while not ended.wait(pause):
                    deliver_waiting(ledger, route)
                    pause = PAUSE
        except Exception as error:  # noqa: BLE001 -- the thread must outlive whatever it meets
            pause = min(LONGEST_PAUSE, 2 * pause)
            say(redact(f"Nothing could be handed on: {str(error) or type(error).__name__}", *route.secrets))
