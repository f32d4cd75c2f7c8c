"""A token without a secret: GitHub says who the job is, the Hub's trusted publisher believes it.

The Hub's limits: one token is for one repo that exists already, it lives for an hour, and it creates
nothing. So a keyless run makes one family, whose repo a person has created once.
https://huggingface.co/docs/hub/trusted-publishers
"""

from __future__ import annotations

from huggingface_hub._oidc import oidc_login
from huggingface_hub.errors import HfHubHTTPError, OIDCError

from hubbot.environment import github_identity
from hubbot.errors import HubFailed
from hubbot.hub.client import Hub
from hubbot.hub.failures import translated_hub_errors
from hubbot.hub.session import belongs_to, within

__all__ = ["keyless_token"]

SECONDS = 120.0  # for both answers together


def keyless_token(resource: str, hub: Hub) -> str:
    """A write token for one existing repo, `namespace/name`, from the identity of this GitHub job.

    Raises HubFailed where GitHub gives no identity or the Hub does not trust it.
    """
    if asked := github_identity():
        belongs_to(asked[1], asked[0])  # a token of GitHub's, for GitHub
    try:
        with translated_hub_errors(f"a token for {resource}", hub), within(SECONDS):
            answer = _asked(resource, hub)
    except OIDCError:
        msg = f"GitHub gave this job no identity to publish {resource} with. Give the job `permissions: id-token: write`, or a token."
        raise HubFailed(msg) from None
    token = answer.get("access_token") if isinstance(answer, dict) else None
    if not isinstance(token, str) or not token:
        raise HubFailed(
            f"The Hub's answer about a token for {resource} holds none. Run it again later, or give a token."
        )
    return token


def _asked(resource: str, hub: Hub) -> object:
    try:
        return oidc_login(resource=resource, endpoint=hub.endpoint)
    except HfHubHTTPError as error:
        told = str(error).split("\n", 1)[0]
        msg = f"The Hub gave no token for {resource}: {told}. In the repo's settings, name this repository, workflow and environment as a trusted publisher; the repo has to exist."
        raise HubFailed(msg) from None
