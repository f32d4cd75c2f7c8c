"""A request on GitHub from the form to the pull requests: one comment, edited; what is started, and by whose word.

Everything is read anew each time, the issue, its comments and our own one with the state in it. So a run that was
dropped, doubled or killed changes nothing: the next one does what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hubbot.bot.github import Answered
from hubbot.bot.request.answer import Desk, answer
from hubbot.bot.request.issue import APPROVED, Issue, Order, Own, State, Writers, read_issue, wanted, write
from hubbot.bot.request.parse import Cancel, Choose, Refused, Request, Retry
from hubbot.bot.request.site import Site
from hubbot.cards.escape import code, inline, url
from hubbot.hub.read.shapes import mapping

__all__ = ["Start", "attend", "tell"]

_HOW = f"Somebody with write access starts this with `/approve` or the label `{APPROVED}`. `/variants Q4_K_M,gptq` changes what is made."
_REPORT = "Its artifacts `report-…` have every number, and the picture of size against divergence."
_AGAIN = "`/retry` starts it once more."
_LOOK_AGAIN = "After a change of the request it is looked at once more; `/retry` looks again as well."


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What the workflow makes now."""

    model: str
    revision: str
    variants: str  # empty: hubbot.toml decides


def attend(number: int, site: Site, desk: Desk) -> Start | None:
    """Answer what is new in an issue; what is to be started, if anything. Raises HubFailed, TokenRefused."""
    issue = read_issue(site.github, number, me=site.me)
    if issue is None:
        return None
    writers = Writers(site.github)
    asked, own = wanted(issue, writers), issue.own
    state = own.state if own else None
    if own is None or state is None:
        _plan(issue, asked, site, desk)
        return None
    if state.run == site.run and not state.over:  # this very run, started once more
        return _start(state)
    if (isinstance(asked, Refused) or asked != state.asked) and not _runs(state, site):
        _plan(issue, asked, site, desk)
        return None
    return _heed(issue, own, state, writers, site, desk)


def tell(number: int, site: Site, *, result: str, published: Sequence[str], pull_requests: Sequence[str]) -> None:
    """Write what this run came to into the comment. result: success, failure, cancelled or skipped, as GitHub says it."""
    issue = read_issue(site.github, number, me=site.me, closed=True)
    own = issue.own if issue else None
    if own is None or own.state is None or own.state.run != site.run:  # another run speaks there now
        return
    write(site.github, number, own, replace(own.state, over=True), _told(site, result, published, pull_requests), own.plan)  # fmt: skip


def _told(site: Site, result: str, published: Sequence[str], pull_requests: Sequence[str]) -> str:
    if result != "success":
        word = "was cancelled" if result == "cancelled" else "failed"
        return f"{site.link(site.run)} {word}. {_AGAIN}"
    waiting = [f"- {link} waits for your review." for one in pull_requests if (link := url(one))]
    there = [f"- {link} is published." for one in published if (link := url(one))]
    lines = [*waiting, *there] or ["- Nothing was published; the run says why."]
    return "\n".join([f"Made by {site.link(site.run)}. {_REPORT}", "", *lines])


def _plan(issue: Issue, asked: Request | Refused, site: Site, desk: Desk) -> None:
    """Answer with a plan; commands that were given before it could be seen count for nothing."""
    found = answer(asked, desk)
    comment, event = issue.latest
    state = State(
        asked=asked if isinstance(asked, Request) else None,
        revision=found.verdict.revision if found.verdict else None,
        makes=found.verdict.variants if found.verdict else None,
        planned=site.github.time(),
        comment=comment,
        event=event,
    )
    write(site.github, issue.number, issue.own, state, _HOW if found.verdict else _LOOK_AGAIN, found.text)


def _heed(issue: Issue, own: Own, state: State, writers: Writers, site: Site, desk: Desk) -> Start | None:
    """Do what was ordered since the plan."""
    orders = issue.since(state)
    if not orders:
        return None
    comment, event = issue.latest
    heeded = replace(state, comment=comment, event=event)
    allowed = [one for one in orders if not isinstance(one.command, Refused) and writers.has(one.who)]
    notes = [_unheeded(one) for one in orders if one not in allowed and not isinstance(one.command, Choose)]
    last = next((one for one in reversed(allowed) if not isinstance(one.command, Choose)), None)
    running = last is not None and _runs(state, site)
    if last is not None and isinstance(last.command, Cancel):
        notes.append(_cancelled(state, site) if running else "Nothing runs that could be cancelled.")
    elif running:
        notes.append(f"It runs already: {site.link(state.run or 0)}.")
    elif last is not None and isinstance(last.command, Retry) and (state.run is None or state.revision is None):
        _plan(issue, wanted(issue, writers), site, desk)
        return None
    elif last is not None and state.revision is not None:
        started = replace(heeded, run=site.run, over=False)
        write(site.github, issue.number, own, started, _told_start(last, site), own.plan)
        return _start(started)
    elif last is not None:
        notes.append("There is nothing to approve; the reason stands below.")
    _note(issue, own, heeded, notes, site)
    return None


def _told_start(order: Order, site: Site) -> str:
    by = "The label" if order.label else f"`/{type(order.command).__name__.lower()}`"
    return f"{by} of {code(order.who)} started {site.link(site.run)}; what comes of it will stand here. `/cancel` stops it."


def _note(issue: Issue, own: Own, state: State, notes: Sequence[str], site: Site) -> None:
    """Keep the comment's first paragraph and say what became of the last commands below it."""
    told = own.text.partition("\n")[2].partition("<!-- hubbot:plan -->")[0].strip().partition("\n\n> ")[0]
    quoted = "".join(f"\n\n> {note}" for note in notes[-5:])
    write(site.github, issue.number, own, state, f"{told}{quoted}", own.plan)


def _unheeded(order: Order) -> str:
    if isinstance(order.command, Refused):
        return inline(order.command.reason, limit=700)
    what = f"The label `{APPROVED}`" if order.label else f"`/{type(order.command).__name__.lower()}`"
    return f"{what} of {code(order.who)} does nothing: it takes write access to this repository."


def _runs(state: State, site: Site) -> bool:
    """Whether the run that was started last goes on."""
    if state.run is None or state.over:
        return False
    try:
        return mapping(site.github.ask("GET", f"/actions/runs/{state.run}")).get("status") != "completed"
    except Answered as error:
        if error.status == 404:  # deleted
            return False
        raise


def _cancelled(state: State, site: Site) -> str:
    try:
        site.github.ask("POST", f"/actions/runs/{state.run}/cancel", {})
    except Answered as error:
        if error.status != 409:  # it has ended meanwhile
            raise
    return f"{site.link(state.run or 0)} is being cancelled."


def _start(state: State) -> Start | None:
    if state.asked is None or state.revision is None:
        return None
    return Start(model=state.asked.model, revision=state.revision, variants=state.makes or "")
