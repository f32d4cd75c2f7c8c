"""What a request is answered with: the plan, or why nothing is made, as Markdown that obeys nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from hubbot.bot.ledger import mirror
from hubbot.bot.ledger.store import Ledger
from hubbot.bot.request.duration import expected
from hubbot.bot.request.parse import Refused, Request
from hubbot.bot.round import judge_seen
from hubbot.bot.verdicts import Action, Verdict
from hubbot.bot.watch import PUBLISHED
from hubbot.cards.escape import code, inline, url
from hubbot.errors import HubbotError, SourceNotFound, TokenRefused
from hubbot.formats.names import fits_memory
from hubbot.hub.read import listing
from hubbot.hub.read.reader import Reader
from hubbot.hub.seen import Candidate
from hubbot.job.pipeline import Run
from hubbot.planning.plan import Plan
from hubbot.planning.plan_view import as_markdown
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
        settings = desk.settings.model_copy(update={"variants": asked.variants or desk.settings.variants})
        verdict = judge_seen(desk.reader, desk.ledger, settings, seen, version=desk.version)
        sized = fits_memory(settings.variants)
        if verdict.action is not Action.RUN and not (sized and verdict.rule == PUBLISHED):
            return Answer(text=_judged(verdict, desk))
        found = _planned(verdict, settings, desk)
        if sized:  # the plan alone knows which type fits, and that one may be published or not
            names = {"variants": ",".join(found.names)}
            verdict = judge_seen(
                desk.reader, desk.ledger, settings.model_copy(update=names), seen, version=desk.version
            )
    except TokenRefused:
        raise
    except HubbotError as error:
        return Answer(text=f"{code(asked.model)} cannot be planned: {inline(str(error), limit=1_000)}")
    told = [_judged(verdict, desk), as_markdown(found)]
    if verdict.action is not Action.RUN or found.refusals:
        return Answer(text="\n\n".join(told))
    return Answer(text="\n\n".join([*told, expected(found, desk.ledger, settings)]), verdict=verdict)


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
