"""What `hubbot serve` and `hubbot webhook` are set up with."""

from __future__ import annotations

from functools import partial

from hubbot.bot.deliver import Deliver, github, hosted_job
from hubbot.bot.watch_settings import WatchSettings
from hubbot.errors import BadSettings
from hubbot.hub import listing
from hubbot.hub.hosted import submit
from hubbot.hub.reader import Reader
from hubbot.settings import Settings


def delivery_of(
    settings: Settings, *, token: str | None, github_token: str | None, endpoint: str | None
) -> Deliver | None:
    """How events are handed on; None: they wait in the state file. Raises BadSettings for what is missing."""
    match settings.serve.deliver:
        case "queue":
            return None
        case "github":
            return github(settings.serve, github_token)
        case "job":
            start = partial(submit, job=settings.job, secrets={"HF_TOKEN": token or ""}, token=token, endpoint=endpoint)
            return hosted_job(lambda event: ["hubbot", "run", event.model, "--revision", event.sha], start)


def watched_items(reader: Reader, watch: WatchSettings) -> list[tuple[str, str]]:
    """What a webhook has to watch, as the Hub wants it: (model | user | org, name).

    Collections and searches cannot be watched by a webhook; `hubbot watch` polls those.
    """
    items = [("model", name) for name in watch.models]
    items += [(listing.kind_of_account(reader, name), name) for name in watch.authors]
    if not items:
        msg = "The [watch] section names no models and no authors, and a webhook can watch nothing else. Add some to hubbot.toml."
        raise BadSettings(msg)
    return items
