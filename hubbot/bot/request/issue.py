"""An issue of GitHub with a request in it: who said what, what we answered, and who may order something."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hubbot.bot.github import Answered, GitHub
from hubbot.bot.request.parse import Approve, Choose, Command, Refused, Request, read_command, read_request
from hubbot.cards.escape import repo_id
from hubbot.errors import HubFailed
from hubbot.hub.read.shapes import entries, mapping

__all__ = ["APPROVED", "LABEL", "Issue", "Order", "Own", "State", "Writers", "read_issue", "wanted", "write"]

LABEL = "quantize"  # of every request; the form sets it
APPROVED = "approved"  # the label that stands for /approve
_MARK = re.compile(r"^<!-- hubbot:request (\{[^\n]{0,2000}\}) -->\n")
_PLAN = "<!-- hubbot:plan -->"
_LONGEST = 60_000  # characters of a comment; GitHub takes 65,536
_WRITERS = ("admin", "write")  # GitHub's `permission`; maintain counts as write there, triage as read
_LOGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}(\[bot\])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What our comment stands for; it lies in the comment itself, where a crash cannot lose it."""

    asked: Request | None  # what was planned; None: nothing that could be understood
    revision: str | None = None  # the commit that an approval starts; None: there is nothing to approve
    makes: str | None = None  # the variants that it starts, with those that their repos hold; None: hubbot.toml's
    planned: str = (
        ""  # GitHub's time just before the plan could be seen; what was said earlier was said of another plan
    )
    comment: int = 0  # the last comment and the last event that were heeded
    event: int = 0
    run: int | None = None  # of Actions, the last that was started
    over: bool = False  # whether that run has told its result


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """Our one comment: its state, what happens, and below that the plan."""

    id: int
    state: State | None
    text: str

    @property
    def plan(self) -> str:
        return self.text.partition(_PLAN)[2].strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A command that somebody gave, by a comment or a label."""

    id: int
    who: str
    at: str
    command: Command | Refused
    label: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    number: int
    author: str
    asked: Request | Refused
    orders: tuple[Order, ...]  # comments first, each kind in order
    own: Own | None
    latest: tuple[int, int]  # comment and event

    def since(self, state: State) -> list[Order]:
        """What was ordered after the plan could be seen, and not heeded yet."""
        return [
            one
            for one in self.orders
            if one.id > (state.event if one.label else state.comment) and one.at > state.planned
        ]


@dataclass(slots=True)
class Writers:
    """Who may write to the repository, by GitHub's own word, asked once for everybody."""

    github: GitHub
    _known: dict[str, bool] = field(default_factory=dict)

    def has(self, login: str) -> bool:
        if login not in self._known:
            self._known[login] = bool(_LOGIN.fullmatch(login)) and self._ask(login)
        return self._known[login]

    def _ask(self, login: str) -> bool:
        try:
            found = self.github.ask("GET", f"/collaborators/{login.replace('[bot]', '%5Bbot%5D')}/permission")
        except Answered as error:
            if error.status == 404:  # nobody of that name
                return False
            raise
        return mapping(found).get("permission") in _WRITERS


def read_issue(github: GitHub, number: int, *, me: str, closed: bool = False) -> Issue | None:
    """An open issue that is a request, with everything that was said; None for any other.

    me: our own login; closed: one that was closed is wanted as well.
    """
    found = mapping(github.ask("GET", f"/issues/{number}"))
    labels = {mapping(label).get("name") for label in entries(found.get("labels"))}
    shut = found.get("state") != "open" and not closed
    if shut or "pull_request" in found or LABEL not in labels:
        return None
    comments = sorted(github.pages(f"/issues/{number}/comments"), key=_id)
    events = sorted(github.pages(f"/issues/{number}/events"), key=_id)
    said = [_order(one) for one in comments if _login(one) != me]
    return Issue(
        number=number,
        author=_login(found),
        asked=read_request(_text(found), title=str(found.get("title") or "")),
        orders=(*(one for one in said if one), *_labelled(events)),
        own=next((own for one in comments if _login(one) == me and (own := _own(one))), None),
        latest=(max(map(_id, comments), default=0), max(map(_id, events), default=0)),
    )


def wanted(issue: Issue, writers: Writers) -> Request | Refused:
    """What is asked for, with the variants that who asks, or a maintainer, has chosen since."""
    asked = issue.asked
    for one in issue.orders:
        if not isinstance(one.command, Choose) or isinstance(asked, Refused):
            continue
        if one.who == issue.author or writers.has(one.who):
            asked = replace(asked, variants=one.command.variants)
    return asked


def write(github: GitHub, issue: int, own: Own | None, state: State, told: str, plan: str) -> Own:
    """Our comment as it shall read: edited where it is there, else made."""
    body = f"{_marked(state)}{told}\n\n{_PLAN}\n\n{plan}"
    if len(body) > _LONGEST:
        body = body[:_LONGEST].rpartition("\n")[0]
    if own is None:
        made = mapping(github.ask("POST", f"/issues/{issue}/comments", {"body": body}))
        return Own(id=_id(made), state=state, text=body)
    if own.text != body:
        github.ask("PATCH", f"/issues/comments/{own.id}", {"body": body})
    return Own(id=own.id, state=state, text=body)


def _marked(state: State) -> str:
    asked = state.asked
    values = {
        "model": asked and asked.model,
        "variants": asked and asked.variants,
        **{name: getattr(state, name) for name in ("revision", "makes", "planned", "comment", "event", "run", "over")},
    }
    return f"<!-- hubbot:request {json.dumps(values)} -->\n"


def _own(comment: Mapping[str, Any]) -> Own | None:
    """A comment of ours that is marked; without a state where the mark cannot be understood."""
    match = _MARK.match(_text(comment).replace("\r\n", "\n"))
    if not match:
        return None
    return Own(id=_id(comment), state=_state(match[1]), text=_text(comment).replace("\r\n", "\n"))


def _state(text: str) -> State | None:
    try:
        told = mapping(json.loads(text))
        asked = told["model"] and Request(model=str(repo_id(told["model"])), variants=told["variants"])
        return State(
            asked=asked or None,
            revision=told["revision"],
            makes=told["makes"],
            planned=str(told["planned"]),
            comment=int(told["comment"]),
            event=int(told["event"]),
            run=told["run"] and int(told["run"]),
            over=bool(told["over"]),
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _order(comment: Mapping[str, Any]) -> Order | None:
    command = read_command(_text(comment))
    if command is None:
        return None
    return Order(id=_id(comment), who=_login(comment), at=str(comment.get("created_at") or ""), command=command)


def _labelled(events: list[Mapping[str, Any]]) -> list[Order]:
    """The approvals by label; who set it is who counts."""
    return [
        Order(id=_id(one), who=_login(one, "actor"), at=str(one.get("created_at") or ""), command=Approve(), label=True)
        for one in events
        if one.get("event") == "labeled" and mapping(one.get("label")).get("name") == APPROVED
    ]


def _id(entry: Mapping[str, Any]) -> int:
    number = entry.get("id")
    if not isinstance(number, int):
        raise HubFailed("GitHub's answer shows an entry without a number. Run it again later.")
    return number


def _login(entry: Mapping[str, Any], key: str = "user") -> str:
    return str(mapping(entry.get(key)).get("login") or "")


def _text(entry: Mapping[str, Any]) -> str:
    return str(entry.get("body") or "")
