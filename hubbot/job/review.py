"""`hubbot review`: a waiting pull request as a maintainer wants to read it, without a browser."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hubbot.cards.escape import clean, repo_id
from hubbot.cards.frontmatter import split
from hubbot.cards.summary import review
from hubbot.errors import BadSettings, HubFailed
from hubbot.hub.client import Hub
from hubbot.hub.publish.current_release import read_record, read_text

__all__ = ["PullRequest", "parse_pull_request", "review_text"]

_ADDRESS = re.compile(r"(?P<host>https?://[^/]+)/(?P<repo>[\w.-]+/[\w.-]+)/discussions/(?P<number>[1-9]\d{0,8})/?")
_SHORT = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)#(?P<number>[1-9]\d{0,8})")


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    repo_id: str
    number: int

    @property
    def revision(self) -> str:
        return f"refs/pr/{self.number}"


def parse_pull_request(text: str, hub: Hub) -> PullRequest:
    """An address `https://huggingface.co/org/name/discussions/3`, or `org/name#3`.

    Raises BadSettings for anything else, and for an address of another Hub: the token is not for that one.
    """
    match = _ADDRESS.fullmatch(text.strip()) or _SHORT.fullmatch(text.strip())
    if match is None or match.groupdict().get("host") not in (None, hub.endpoint) or not repo_id(match["repo"]):
        msg = f"{text!r} is no pull request of {hub.endpoint}. Give its address, {hub.endpoint}/org/name/discussions/3, or org/name#3."
        raise BadSettings(msg)
    return PullRequest(repo_id=match["repo"], number=int(match["number"]))


def review_text(pull: PullRequest, hub: Hub) -> str:
    """The card of the pull request, the verdicts, and its numbers against main, as Markdown.

    Raises HubFailed when the pull request holds no record: then it is not one of hubbot's.
    """
    new = read_record(pull.repo_id, hub, revision=pull.revision)
    if new is None:
        msg = (
            f"{pull.repo_id} has no readable hubbot.json in {pull.revision}: the pull request does not exist, was not "
            "opened by hubbot, or its record has another schema. Look at it on the Hub."
        )
        raise HubFailed(msg)
    card = read_text(pull.repo_id, "README.md", hub, revision=pull.revision)
    old = read_record(pull.repo_id, hub)
    body = re.sub(r"(?m)^<!-- hubbot:(?:begin|end) [a-z-]+ -->\n?", "", split(card)[1]) if card else ""
    return f"{clean(body, limit=400_000).strip()}\n\n{review(new, old)}"
