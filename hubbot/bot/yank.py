"""Taking back what was published: a banner and `new_version` on the cards, a mark for the bot, and no new release."""

from __future__ import annotations

import re

from hubbot.bot.published import YANKED_TAG, poll_releases
from hubbot.cards.escape import inline, repo_id
from hubbot.cards.frontmatter import dump, split
from hubbot.errors import BadSettings, HubFailed
from hubbot.hub.reader import Reader
from hubbot.hub.takeback import take_back
from hubbot.ledger import mirror
from hubbot.ledger.store import Ledger
from hubbot.settings import Settings

_BANNER = re.compile(r"<!-- hubbot:yanked -->.*?<!-- /hubbot:yanked -->\n*", re.DOTALL)


def yank(
    reader: Reader, ledger: Ledger, settings: Settings, model: str, *, reason: str, new_version: str, delete: bool
) -> dict[str, str]:
    """Take back every release of a model. Returns repo -> the commit that says so on main.

    The state file is told first, so that no other bot publishes the model meanwhile. Raises BadSettings
    where nothing of the model is published, HubFailed, TokenRefused.
    """
    namespace = settings.publish.namespace
    if not namespace:
        raise BadSettings("Whose releases are to be taken back? Name the owner with --namespace or publish.namespace.")
    if not reason.strip():
        raise BadSettings("A reader of the card wants to know why. Give a --reason.")
    poll_releases(reader, ledger, namespace, refresh_hours=settings.watch.refresh_hours)
    releases = mirror.releases(ledger, model)
    if not releases:
        msg = (
            f"{namespace} has published nothing from {model}. Name the source model as its releases' hubbot.json does."
        )
        raise BadSettings(msg)
    if not reader.token:
        raise HubFailed("Taking back needs a token. Set HF_TOKEN to one that may write to the published repos.")
    mirror.store_yank(ledger, model, reason)
    return {
        release.repo: take_back(
            release.repo,
            lambda card: yanked_card(card, reason, new_version),
            delete=delete,
            token=reader.token,
            endpoint=reader.endpoint,
        )
        for release in releases
    }


def yanked_card(card: str, reason: str, new_version: str) -> str:
    """The card with the banner on top, the tag and `new_version`; a second time changes nothing more."""
    head, body = split(card)
    tags = [tag for tag in head.get("tags") or [] if tag != YANKED_TAG]
    head |= {"tags": [*tags, YANKED_TAG]}
    instead = repo_id(new_version)
    if instead:
        head["new_version"] = instead
    pointer = f" Use [{instead}](https://huggingface.co/{instead}) instead." if instead else ""
    banner = (
        "<!-- hubbot:yanked -->\n> [!WARNING]\n"
        f"> **Taken back:** {inline(reason)}{pointer}\n"
        "<!-- /hubbot:yanked -->\n\n"
    )
    return dump(head) + banner + _BANNER.sub("", body)
