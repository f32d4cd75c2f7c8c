"""What a request is answered with: the plan, or why nothing is made, as Markdown that obeys nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from hubbot.bot.ledger import mirror
from hubbot.bot.ledger.store import Ledger
from hubbot.bot.request.duration import expected
from hubbot.bot.request.parse import Refused, Request
from hubbot.bot.round import judge_seen, look_at_releases
from hubbot.bot.verdicts import Action, Verdict
from hubbot.bot.watch import PUBLISHED
from hubbot.cards.escape import code, inline, url
from hubbot.errors import HubbotError, SourceNotFound, TokenRefused
from hubbot.formats.names import Wanted, find_variant, fits_memory, parse_wanted
from hubbot.hub.read import listing
from hubbot.hub.read.reader import Reader
from hubbot.hub.seen import Candidate
from hubbot.job.pipeline import Run
from hubbot.planning.plan import Plan
from hubbot.planning.plan_view import as_markdown
from hubbot.release.repos import target_repos, with_owner
from hubbot.settings import Settings

__all__ = ["Answer", "Desk", "Planner", "answer", "published_links"]

Planner: TypeAlias = Callable[[Run], Plan]
"""The plan of a model from its headers. Raises HubbotError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What requests are answered with."""

    reader: Reader
    ledger: Ledger
    settings: Settings
    version: str
    plan: Planner


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    text: str  # Markdown
    verdict: Verdict | None = None  # what may be started; None: nothing


def answer(asked: Request | Refused, desk: Desk) -> Answer:
    """The plan of what is asked for, judged by the rules of [watch]; or why nothing is made. Raises TokenRefused.

    A private model is answered as one that does not exist: who asks may not be who the token belongs to.
    """
    if isinstance(asked, Refused):
        return Answer(text=inline(asked.reason, limit=700))
    try:
        seen = _seen(asked.model, desk.reader)
        if seen is None or seen.private:
            return Answer(text=f"The Hub shows no model {code(asked.model)}. Look at its name; it is written as owner/name.")  # fmt: skip
        makes, kept = _with_published(asked, desk)
        settings = desk.settings.model_copy(update={"variants": makes or desk.settings.variants})
        verdict = judge_seen(desk.reader, desk.ledger, settings, seen, version=desk.version, asked=makes)
        sized = fits_memory(settings.variants)
        if verdict.action is not Action.RUN and not (sized and verdict.rule == PUBLISHED):
            return Answer(text=_judged(verdict, desk))
        found = _planned(verdict, settings, desk)
        if sized:  # the plan alone knows which type fits, and that one may be published or not
            exact = settings.model_copy(update={"variants": ",".join(found.names)})
            verdict = judge_seen(desk.reader, desk.ledger, exact, seen, version=desk.version, asked=makes)
    except TokenRefused:
        raise
    except HubbotError as error:
        return Answer(text=f"{code(asked.model)} cannot be planned: {inline(str(error), limit=1_000)}")
    judged, shown = _judged(verdict, desk), as_markdown(found)
    if verdict.action is not Action.RUN or found.refusals:
        return Answer(text=f"{judged}\n\n{shown}")
    told = [judged, *_again(kept), shown, expected(found, desk.ledger, settings)]
    return Answer(text="\n\n".join(told), verdict=verdict)


def _with_published(asked: Request, desk: Desk) -> tuple[str | None, list[str]]:
    """The variants to make, None for those of hubbot.toml, and which of them nobody asked for.

    What a repo holds already is made again with what is asked for: a repo is one release, and takes away what a newer one
    lacks.
    """
    if asked.variants is None:
        return None, []
    look_at_releases(desk.reader, desk.ledger, desk.settings)
    held = _published_beside(asked.model, parse_wanted(asked.variants), desk)
    return ",".join([asked.variants, *held]), held


def _published_beside(model: str, wanted: Sequence[Wanted], desk: Desk) -> list[str]:
    """The variants that the repos of those that are wanted hold besides them."""
    mine = frozenset[str]().union(*(_repos(model, one.variant.name, desk) for one in wanted))
    names = {one.variant.name for one in wanted if one.memory is None}
    return [
        name
        for release in mirror.releases(desk.ledger, model)
        if release.repo in mine
        for name, status in release.variants.items()
        if status in ("passed", "published") and name not in names and release.repo in _repos(model, name, desk)
    ]


def _repos(model: str, name: str, desk: Desk) -> frozenset[str]:
    """Where a variant is published, whether its model's owner is in the name or not."""
    variant, publish = find_variant(name), desk.settings.publish
    if variant is None:
        return frozenset()
    return frozenset(repo for one in (publish, with_owner(publish)) for repo in target_repos(model, [variant], one))


def _again(kept: Sequence[str]) -> list[str]:
    if not kept:
        return []
    return [f"{', '.join(map(code, kept))} of the same repo are made again with it, for a repo is one release."]


def _seen(model: str, reader: Reader) -> Candidate | None:
    try:
        return listing.read_model(reader, model)[0]
    except SourceNotFound:
        return None


def _judged(verdict: Verdict, desk: Desk) -> str:
    """The rule that decided, and what is published from the model already."""
    does = {Action.RUN: "can be made", Action.WAIT: "is not made now"}.get(verdict.action, "is not made")
    said = f"{code(verdict.model)} at {code(verdict.revision[:8])} {does}: {inline(verdict.reason, limit=600)} (rule {code(verdict.rule)})."
    if links := published_links(verdict.model, desk):
        return f"{said}\n\nPublished: {links}"
    return said


def published_links(model: str, desk: Desk) -> str:
    """Links to what is published from a model, as the Hub showed it; empty where nothing is."""
    repos = sorted(release.repo for release in mirror.releases(desk.ledger, model))
    return ", ".join(f"[{inline(repo)}]({url(f'{desk.reader.hub.endpoint}/{repo}')})" for repo in repos)


def _planned(verdict: Verdict, settings: Settings, desk: Desk) -> Plan:
    with TemporaryDirectory(prefix="hubbot-request-") as folder:
        told = settings.model_copy(update={"revision": verdict.revision, "out": Path(folder)})
        return desk.plan(Run(model=verdict.model, settings=told, hub=desk.reader.hub, command="hubbot request"))
