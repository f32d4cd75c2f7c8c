"""Registering with the Hub's webhooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hubbot.hub.access import hub_api, speaking_plainly


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    id: str
    url: str | None
    job: str | None  # command of the Hugging Face Job that it starts
    watched: tuple[str, ...]  # "user:name", "org:name", "model:org/name"
    disabled: bool


def create(
    watched: Sequence[tuple[str, str]],
    *,
    url: str | None,
    job: str | None,
    secret: str,
    token: str | None,
    endpoint: str | None = None,
) -> Webhook:
    """Register a webhook for changes of repos: to a URL, or to start anew an existing Job.

    watched: (user | org | model, name). Raises HubFailed, TokenRefused.
    """
    items: list[Any] = [{"type": kind, "name": name} for kind, name in watched]
    with speaking_plainly("the webhook", token=token, endpoint=endpoint):
        made = hub_api(token, endpoint).create_webhook(
            url=url, job_id=job, watched=items, domains=["repo"], secret=secret
        )
    return _webhook(made)


def listed(*, token: str | None, endpoint: str | None = None) -> list[Webhook]:
    with speaking_plainly("the webhooks", token=token, endpoint=endpoint):
        return [_webhook(found) for found in hub_api(token, endpoint).list_webhooks()]


def delete(webhook: str, *, token: str | None, endpoint: str | None = None) -> None:
    with speaking_plainly(f"webhook {webhook}", token=token, endpoint=endpoint):
        hub_api(token, endpoint).delete_webhook(webhook)


def _webhook(found: Any) -> Webhook:
    """Without its secret: nobody needs to see that again."""
    command = " ".join(found.job.command or ()) if found.job else None
    watched = tuple(f"{item.type}:{item.name}" for item in found.watched)
    return Webhook(id=found.id, url=found.url, job=command, watched=watched, disabled=found.disabled)
