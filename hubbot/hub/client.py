"""The Hub as one account sees it: where it is, with what token, how patiently, how fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils.tqdm import disable_progress_bars

from hubbot import __version__
from hubbot.environment import hub_endpoint, hub_token
from hubbot.hub.rate_limit import RateLimit
from hubbot.hub.retry import Retry
from hubbot.hub.session import belongs_to

__all__ = ["ENDPOINT", "Hub", "hub_of_environment"]

ENDPOINT = "https://huggingface.co"
_OURS: dict[str, Any] = {"library_name": "hubbot", "library_version": __version__}


disable_progress_bars()  # ours are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """One Hub and one account; whatever reads or publishes is given this."""

    endpoint: str = ENDPOINT
    token: str | None = field(default=None, repr=False)
    retry: Retry = field(default_factory=Retry)
    commits: RateLimit = field(default_factory=RateLimit)

    @property
    def api(self) -> HfApi:
        """A client that knows this token alone: never one from the environment or from a login on this machine."""
        belongs_to(self.token, self.endpoint)
        return HfApi(endpoint=self.endpoint, token=self.token or False, **_OURS)

    @property
    def headers(self) -> dict[str, str]:
        """The same for a request of our own."""
        belongs_to(self.token, self.endpoint)
        return dict(build_hf_headers(token=self.token or False, **_OURS))


def hub_of_environment(*, endpoint: str | None = None) -> Hub:
    """The Hub that HF_ENDPOINT and HF_TOKEN name. endpoint: this one instead."""
    return Hub(endpoint=(endpoint or hub_endpoint() or ENDPOINT).rstrip("/"), token=hub_token())
