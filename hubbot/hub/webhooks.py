"""Registering with the Hub's webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hubbot.errors import BadSettings
from hubbot.hub.client import Hub
from hubbot.hub.failures import translated_hub_errors
from hubbot.hub.read.listing import account_type
from hubbot.hub.read.reader import Reader
from hubbot.settings.watch import WatchSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    id: str
    url: str | None
    job: str | None  # command of the Hugging Face Job that it starts
    watched: tuple[str, ...]  # "user:name", "org:name", "model:org/name"
    disabled: bool


def create(watched: Sequence[tuple[str, str]], hub: Hub, *, url: str | None, job: str | None, secret: str) -> Webhook:
    """Register a webhook for changes of repos: to a URL, or to start anew an existing Job.

    watched: (user | org | model, name). Raises HubFailed, TokenRefused.
    """
    items: list[Any] = [{"type": owner, "name": name} for owner, name in watched]
    with translated_hub_errors("the webhook", hub):
        made = hub.api.create_webhook(url=url, job_id=job, watched=items, domains=["repo"], secret=secret)
    return _webhook(made)


def listed(hub: Hub) -> list[Webhook]:
    with translated_hub_errors("the webhooks", hub):
        return [_webhook(found) for found in hub.api.list_webhooks()]


def delete(webhook: str, hub: Hub) -> None:
    with translated_hub_errors(f"webhook {webhook}", hub):
        hub.api.delete_webhook(webhook)


def _webhook(found: Any) -> Webhook:
    """Without its secret: nobody needs to see that again."""
    command = " ".join(found.job.command or ()) if found.job else None
    watched = tuple(f"{item.type}:{item.name}" for item in found.watched)
    return Webhook(id=found.id, url=found.url, job=command, watched=watched, disabled=found.disabled)


def watched_items(reader: Reader, watch: WatchSettings) -> list[tuple[str, str]]:
    """What a webhook has to watch, as the Hub wants it: (model | user | org, name).

    Collections and searches cannot be watched by a webhook; `hubbot watch` polls those.
    """
    items = [("model", name) for name in watch.models]
    items += [(account_type(reader, name), name) for name in watch.authors]
    if not items:
        msg = "The [watch] section names no models and no authors, and a webhook can watch nothing else. Add some to hubbot.toml."
        raise BadSettings(msg)
    return items
