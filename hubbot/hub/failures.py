"""Errors of the Hub and of its client, translated into ours: what happened, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import DisabledRepoError, GatedRepoError, HfHubHTTPError

from hubbot.errors import HubbotError, HubFailed, PublishConflict, SourceNotFound, SourceRefused, TokenRefused
from hubbot.hub.client import Hub
from hubbot.hub.retry import TRANSIENT, is_odd_answer, retry_after, root_cause, storage_refused
from hubbot.log.redact import redact

__all__ = ["RequestRefused", "translate_hub_error", "translated_hub_errors"]

_MISSING = frozenset({"RepoNotFound", "RevisionNotFound", "EntryNotFound"})  # X-Error-Code


class RequestRefused(HubFailed):
    """The Hub cannot do anything with what was asked: an address or a cursor that is none of its own any more."""


@contextmanager
def translated_hub_errors(what: str, hub: Hub) -> Iterator[None]:
    """Turn the client's errors into hubbot's. what: the repo or address, as people write it."""
    try:
        yield
    except HubbotError:
        raise
    except (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, ConnectionError, RuntimeError, ValueError) as error:
        raise translate_hub_error(error, what, hub) from None
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        if not is_odd_answer(error):
            raise  # a defect of ours
        raise translate_hub_error(error, what, hub) from None


def translate_hub_error(error: BaseException, what: str, hub: Hub) -> HubbotError:
    """The error of hubbot that says what happened to `what` and what to do next; never with the token in it."""
    cause = root_cause(error)
    text = _short(cause, hub.token)
    if isinstance(cause, HfHubHTTPError):
        return _by_status(cause, what, text, hub)
    why = text or type(cause).__name__
    if isinstance(cause, (httpx2.TransportError, ConnectionError)):
        return HubFailed(f"{hub.endpoint} did not answer about {what} ({why}). Check the network and run it again.")
    if is_odd_answer(cause):
        return HubFailed(
            f"The Hub's answer about {what} cannot be understood ({type(cause).__name__}). Run it again later."
        )
    if isinstance(cause, (httpx2.RequestError, httpx2.InvalidURL)):  # redirects without end, a spoilt address
        return HubFailed(f"The Hub's answer about {what} is of no use ({type(cause).__name__}). Run it again later.")
    return HubFailed(f"The Hub would not take {what}: {why} Mend that and run it again.")


def _by_status(error: HfHubHTTPError, what: str, text: str, hub: Hub) -> HubbotError:
    status, code = error.response.status_code, error.response.headers.get("x-error-code")
    if isinstance(error, DisabledRepoError):
        return SourceRefused(f"{what} is disabled on the Hub. Choose another source, or ask the Hub's team why.")
    if isinstance(error, GatedRepoError) or code == "GatedRepo":
        who = "the account of this token" if hub.token else "your account, then pass its token in HF_TOKEN"
        return SourceNotFound(
            f"{what} is gated. Accept its terms at {hub.endpoint}/{what} with {who}, and run it again."
        )
    said = f"{error.response.headers.get('x-error-message', '')} {error}"
    if status == 401 and ("Invalid credentials" in said or "Invalid user token" in said):
        return TokenRefused(
            "The Hub does not accept the token: it is wrong, expired or revoked. Make a new one and set HF_TOKEN."
        )
    if status == 404 and code == "RevisionNotFound":
        return SourceNotFound(f"{what} has no such revision ({text}). Name a branch, tag or full commit id.")
    if status in (401, 404) or code in _MISSING:
        hint = "" if hub.token else " A private one needs a token in HF_TOKEN."
        return SourceNotFound(
            f"The Hub has no {what}, or hides it from this token. Check the name and the token's access.{hint}"
        )
    return _refused(error, what, text, status)


def _refused(error: HfHubHTTPError, what: str, text: str, status: int) -> HubbotError:
    if storage_refused(error):
        return HubFailed(
            f"The storage refused a file of {what} ({status}). Its address may have expired; run it again."
        )
    if status == 403 and error.response.request.method in ("GET", "HEAD"):  # about that one thing, not about the token
        return HubFailed(f"The token may not read {what}: {text} `hubbot doctor` shows what it may do.")
    if status == 403:
        return TokenRefused(
            f"The token may not do this to {what}: {text} Give it write access there, or publish with --publish pr. "
            "`hubbot doctor` shows what it may do."
        )
    if status == 412:
        return PublishConflict(f"{what} was changed by somebody else meanwhile. Run `hubbot publish` again.")
    if status in TRANSIENT and (wait := retry_after(error)) is not None:
        return HubFailed(f"The Hub asks to wait {wait:.0f} s about {what} ({status}: {text}). Run it again after that.")
    if status in (400, 410, 416, 422) and error.response.request.method == "GET":
        return RequestRefused(f"The Hub cannot make anything of {what} ({status}): {text} Run it again.")
    if status == 429:
        return HubFailed(f"The Hub's rate limit is used up ({text}). Run it again later.")
    return HubFailed(
        f"The Hub answered {status} about {what}: {text} Run it again later; nothing half-made is visible."
    )


def _short(error: BaseException, token: str | None) -> str:
    """The last telling line of the Hub's message, without secrets and signed addresses."""
    text = getattr(error, "server_message", None) or str(error)
    lines = [line.strip() for line in redact(str(text), token).splitlines() if line.strip()]
    return " ".join(" ".join(lines[-3:]).split())[:400]
