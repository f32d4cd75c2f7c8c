"""Discussions of a repo on the Hub: what people say there, a comment of ours, and who may write to a namespace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from hubbot.errors import HubFailed, SourceNotFound
from hubbot.hub.client import Hub
from hubbot.hub.failures import translated_hub_errors
from hubbot.hub.read.reader import Params, Reader
from hubbot.hub.read.shapes import entries, mapping, number

__all__ = ["Said", "Thread", "open_threads", "say", "writers"]

MOST = 100  # open discussions that are read in a round, the newest first
_ROLES = ("admin", "write")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    id: str
    author: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    num: int
    title: str
    author: str
    said: tuple[Said, ...]  # comments that are not hidden; the first is the description


def open_threads(repo: str, reader: Reader, *, most: int = MOST) -> Iterator[Thread]:
    """The open discussions of a model repo, pull requests left out, the newest first. Raises HubFailed."""
    read, page = 0, 0
    while read < most:
        found = _listed(repo, reader, page)
        for item in found[: most - read]:
            if (num := number(item.get("num"))) is not None and item.get("isPullRequest") is False:
                yield _thread(mapping(reader.get(f"/api/models/{repo}/discussions/{num}").body), num)
        read, page = read + len(found), page + 1
        if not found:
            return


def _listed(repo: str, reader: Reader, page: int) -> list[Mapping[str, Any]]:
    query: Params = {"type": "discussion", "status": "open", "p": page}
    found = mapping(reader.get(f"/api/models/{repo}/discussions", query).body).get("discussions")
    if not isinstance(found, list):
        raise HubFailed(f"The Hub's answer about the discussions of {repo} is no list. Run it again later.")
    return [mapping(item) for item in found]


def _thread(details: Mapping[str, Any], num: int) -> Thread:
    return Thread(
        num=num,
        title=str(details.get("title") or ""),
        author=_name(details),
        said=tuple(
            Said(id=str(event.get("id") or ""), author=_name(event), text=_text(event))
            for event in map(mapping, entries(details.get("events")))
            if event.get("type") == "comment" and not mapping(event.get("data")).get("hidden")
        ),
    )


def _name(entry: Mapping[str, Any]) -> str:
    return str(mapping(entry.get("author")).get("name") or "")


def _text(event: Mapping[str, Any]) -> str:
    return str(mapping(mapping(event.get("data")).get("latest")).get("raw") or "").replace("\r\n", "\n")


def say(repo: str, num: int, text: str, hub: Hub) -> None:
    """Add a comment, by one request: after a lost answer whoever asks the Hub sees whether it is there."""
    with translated_hub_errors(f"{repo}#{num}", hub):
        hub.api.comment_discussion(repo, num, text)


def writers(namespace: str, reader: Reader) -> frozenset[str]:
    """Who may write to a namespace, as far as the Hub tells: its user, or an organisation's members with that role."""
    try:
        pages = list(reader.pages(f"/api/organizations/{quote(namespace)}/members"))
    except SourceNotFound:
        return frozenset({namespace})
    members = [mapping(member) for page in pages for member in page.body or ()]
    return frozenset(
        name for one in members if one.get("role") in _ROLES and (name := str(one.get("user") or one.get("name") or ""))
    )
