"""Taking back what was published: a banner and `new_version` on the cards, a mark for the bot, and no new release."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

from hubbot.bot.ledger import jobs, mirror
from hubbot.bot.ledger.store import Ledger
from hubbot.bot.published import YANKED_TAG, poll_releases
from hubbot.cards.escape import inline, repo_id
from hubbot.cards.frontmatter import dump, split
from hubbot.errors import BadSettings, HubFailed
from hubbot.formats.names import parse_variants
from hubbot.hub.client import Hub
from hubbot.hub.publish.yank_release import close_pull_requests, yank_release
from hubbot.hub.rate_limit import RateLimit
from hubbot.hub.read.reader import Reader
from hubbot.release.repos import target_repos, with_owner
from hubbot.settings import Settings

_BANNER = re.compile(r"<!-- hubbot:yanked -->.*?<!-- /hubbot:yanked -->\n*", re.DOTALL)


def yank(
    reader: Reader, ledger: Ledger, settings: Settings, model: str, *, reason: str, new_version: str, delete: bool
) -> dict[str, str]:
    """Take back every release of a model and close what waits of it. Returns repo -> what was done there.

    The state file is told first, so that no job of the model begins any more, and one that runs stops before it
    publishes. Raises BadSettings where nothing of the model is published or offered, HubFailed, TokenRefused.
    """
    namespace = settings.publish.namespace
    if not namespace:
        raise BadSettings("Whose releases are to be taken back? Name the owner with --namespace or publish.namespace.")
    if not reason.strip():
        raise BadSettings("A reader of the card wants to know why. Give a --reason.")
    poll_releases(reader, ledger, namespace, refresh_hours=settings.watch.refresh_hours, finish=lambda _: False)
    published = {release.repo for release in mirror.releases(ledger, model)}
    variants = parse_variants(settings.variants)
    names = (settings.publish, with_owner(settings.publish))
    wanted = published.union(*(target_repos(model, variants, publish) for publish in names))
    if not published and jobs.last_job(ledger, model) is None:
        msg = (
            f"{namespace} has published nothing from {model}. Name the source model as its releases' hubbot.json does."
        )
        raise BadSettings(msg)
    if not reader.hub.token:
        raise HubFailed("Taking back needs a token. Set HF_TOKEN to one that may write to the published repos.")
    mirror.store_yank(ledger, model, reason)
    hub = replace(reader.hub, commits=_counted(ledger, model))
    done: dict[str, str] = {}
    for repo in sorted(wanted):
        told = _yank_from(repo, hub, reason=reason, new_version=new_version, delete=delete, card=repo in published)
        done |= {repo: told} if told else {}
    return done


def _yank_from(repo: str, hub: Hub, *, reason: str, new_version: str, delete: bool, card: bool) -> str:
    """One repo: its waiting pull requests closed and, where it holds a release, the card marked. Returns what was done."""
    why = f"Taken back: {inline(reason)}"
    told = [f"pull request {num} closed" for num in close_pull_requests(repo, hub, why=why)]
    if card:
        told.append(yank_release(repo, lambda text: yanked_card(text, reason, new_version), hub, delete=delete))
    return ", ".join(told)


def _counted(ledger: Ledger, model: str) -> RateLimit:
    """Commits of a person at the keyboard wait for nothing, but the bot has to know of them."""
    return RateLimit(per_hour=sys.maxsize, on_commit=lambda _: jobs.record_commits(ledger, model, 1))


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
    return dump(head) + banner + _BANNER.sub("", body).lstrip("\r\n")
