"""What a delivery of the Hub's webhooks says, and whether it is one of ours. Pure.

Secrets arrive verbatim in X-Webhook-Secret; there is no signature over the body. `repo.content` also
fires for pull requests (refs/pr/N); only main and tags make a model new.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from hubbot.bot.ledger.events import Event
from hubbot.domain import REPO_ID
from hubbot.errors import BadSettings, HubbotError

SECRET_VARIABLE = "HUBBOT_WEBHOOK_SECRET"  # noqa: S105 -- the variable's name
MAIN = "refs/heads/main"
SHORTEST_SECRET = 16  # characters

_Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
_RepoName = Annotated[str, Field(pattern=f"^{REPO_ID.pattern}$")]


class UpdatedRef(BaseModel):
    ref: Annotated[str, Field(max_length=300)]
    oldSha: _Sha | None = None  # noqa: N815 -- the Hub's spelling
    newSha: _Sha | None = None  # noqa: N815


class DeliveryEvent(BaseModel):
    action: Annotated[str, Field(max_length=40)]
    scope: Annotated[str, Field(max_length=100)]


class DeliveryRepo(BaseModel):
    type: Annotated[str, Field(max_length=40)]
    name: _RepoName


class Delivery(BaseModel):
    """The part of the Hub's webhook payload (version 3) that is read."""

    event: DeliveryEvent
    repo: DeliveryRepo
    updatedRefs: list[UpdatedRef] = Field(default=[], max_length=1000)  # noqa: N815


class BadDelivery(HubbotError):
    """A body that is no payload of the Hub."""


def required_secret(environ: Mapping[str, str], variable: str = SECRET_VARIABLE) -> str:
    """The secret that deliveries have to know. Raises BadSettings where there is none, or one too short to keep."""
    secret = environ.get(variable, "")
    if len(secret) < SHORTEST_SECRET:
        found = "is not set" if not secret else f"has {len(secret)} characters"
        msg = (
            f"{variable} {found}; a secret of at least {SHORTEST_SECRET} characters is needed, or anybody could start jobs. "
            f"Make one with `openssl rand -hex 32`, set {variable}, and give the same to `hubbot webhook create`."
        )
        raise BadSettings(msg)
    return secret


def knows_secret(given: str | bytes | None, secret: str) -> bool:
    """Compared in constant time."""
    known = given if isinstance(given, bytes) else (given or "").encode()
    return hmac.compare_digest(known, secret.encode())


def read_delivery(body: bytes | str) -> Delivery:
    """Raises BadDelivery naming the first key that is wrong."""
    try:
        return Delivery.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "body"
        raise BadDelivery(f"No webhook payload of the Hub: {where}: {problem['msg']}.") from None


def events_of(delivery: Delivery) -> list[Event]:
    """The refs of a model that a delivery moves; empty where it is none of our business."""
    if delivery.repo.type != "model" or delivery.event.action != "update":
        return []
    if not delivery.event.scope.startswith("repo"):
        return []
    return [
        Event(model=delivery.repo.name, ref=moved.ref, old=moved.oldSha, sha=moved.newSha)
        for moved in delivery.updatedRefs
        if moved.newSha and (moved.ref == MAIN or moved.ref.startswith("refs/tags/"))
    ]


def from_job(environ: Mapping[str, str]) -> list[Event]:
    """The moves of main that a webhook started this Hugging Face Job with; a tag may stand on an old commit.

    environ: WEBHOOK_PAYLOAD, WEBHOOK_REPO_ID and WEBHOOK_SECRET as the Hub sets them, and our own secret.
    Raises BadSettings where they are missing, do not agree, or the secret is not ours.
    """
    secret = required_secret(environ)
    payload = environ.get("WEBHOOK_PAYLOAD", "")
    if not payload:
        msg = "WEBHOOK_PAYLOAD is not set: --from-webhook belongs into a Hugging Face Job that a webhook starts. Name the model instead."
        raise BadSettings(msg)
    if not knows_secret(environ.get("WEBHOOK_SECRET"), secret):
        msg = f"WEBHOOK_SECRET is not {SECRET_VARIABLE}: whoever started this Job does not know the secret. Nothing was done."
        raise BadSettings(msg)
    try:
        delivery = read_delivery(payload)
    except BadDelivery as error:
        raise BadSettings(f"WEBHOOK_PAYLOAD: {error}") from None
    named = environ.get("WEBHOOK_REPO_ID")
    if named and named != delivery.repo.name:
        msg = f"WEBHOOK_REPO_ID is {named!r}, but the payload is about {delivery.repo.name!r}. Nothing was done."
        raise BadSettings(msg)
    return [event for event in events_of(delivery) if event.ref == MAIN]
