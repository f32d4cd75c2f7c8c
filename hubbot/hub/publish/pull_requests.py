"""The one pull request of a release: found again by a mark in its description, opened once, described anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from huggingface_hub import CommitOperationAdd
from huggingface_hub.community import DiscussionComment, DiscussionWithDetails

from hubbot.errors import HubFailed
from hubbot.hub.publish.repo_release import MAIN
from hubbot.hub.publish.target import Target
from hubbot.hub.retry import status_of
from hubbot.hub.rights import account
from hubbot.hub.session import within

__all__ = ["Pull", "Pulls", "mark"]

_MARK = "<!-- hubbot:release "
_UPDATING = "[being updated]"  # before the title while it holds something else
MOST = 40  # pull requests of ours that are looked at, the newest first


def mark(base: str) -> str:
    """What ends the description of a request for a branch, and how a retry knows its own."""
    return f"{_MARK}{base} -->"


@dataclass(frozen=True, slots=True)
class Pull:
    num: int
    status: str  # draft, open, closed, merged
    title: str
    comment: str | None  # id of the first comment, which is the description
    description: str

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


class Pulls:
    """The marked pull requests that this token's account has opened in a repo."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.author = account(target.hub)

    def latest(self) -> Pull | None:
        """The one that counts: the oldest that still waits, else the newest that was merged or closed."""
        found = self._marked()
        return _oldest(_waiting(found) or found[:1]) if found else None

    def all_waiting(self) -> list[Pull]:
        """Every marked one that waits, for whatever branch."""
        return _waiting(self._marked(_MARK))

    def _marked(self, text: str | None = None) -> list[Pull]:
        """Those whose description holds a text, by default the mark of this release's branch; the newest first."""
        text = text or mark(self.target.release.base)
        api, repo_id = self.target.api, self.target.repo_id
        listed = self.target.retry(
            lambda: list(api.get_repo_discussions(repo_id, author=self.author, discussion_type="pull_request"))
        )
        # The filter is the server's; a stranger's request with our mark must never count.
        own = [item for item in listed if item.is_pull_request and item.author == self.author]
        newest = sorted(own, key=lambda item: item.num, reverse=True)[:MOST]
        return [pull for item in newest if (pull := self._read(item.num, text)) is not None]

    def _read(self, num: int, text: str) -> Pull | None:
        api, repo_id = self.target.api, self.target.repo_id
        details = self.target.retry(lambda: api.get_discussion_details(repo_id, num))
        comment = _description(details)
        if comment is None or text not in comment.content:
            return None
        return Pull(num, details.status, details.title, comment.id, comment.content)

    def open(self) -> Pull:
        """Open one, as a draft until its files are there; a lost answer or a rival bot never makes it two.

        One that a rival has opened since `latest` looked is taken as it is.
        """
        target, known = self.target, self._marked()
        if waiting := _waiting(known):
            return _oldest(waiting)
        before = {pull.num for pull in known}
        for attempt in range(target.retry.attempts):
            try:
                with within(target.retry.seconds):
                    num = self._create()
            except Exception as error:
                if not target.retry.back_off(attempt, error):
                    raise
            else:
                return self._settle(before, num)
            if found := [pull for pull in self._marked() if pull.num not in before]:
                return self._settle(before, max(pull.num for pull in found))
        raise AssertionError  # the last try returned or raised

    def _create(self) -> int:
        """An empty draft for main. For another branch only a commit opens one, so it begins with a small file."""
        target, release = self.target, self.target.release
        if release.base == MAIN:
            target.hub.commits.allowed()
            made = target.api.create_pull_request(target.repo_id, title=release.title, description=self._text())
            return int(made.num)
        path, file = min(release.branches[release.base].items(), key=lambda item: item[1].stat().st_size)
        target.hub.commits.acquire()
        with target.transport():
            info = target.api.create_commit(
                target.repo_id,
                [CommitOperationAdd(path, file)],
                commit_message=f"{_UPDATING} {release.title}",
                commit_description=self._text(),
                revision=release.base,
                create_pr=True,
            )
        return int(info.pr_num or 0)

    def _settle(self, before: set[int], mine: int) -> Pull:
        """Of several that were opened at once the oldest stays; ours is closed if it is another."""
        waiting = [pull for pull in _waiting(self._marked()) if pull.num not in before]
        if not waiting:
            raise HubFailed(
                f"Pull request {mine} of {self.target.repo_id} was closed as soon as it was opened. Ask its maintainers."
            )
        oldest = _oldest(waiting)
        if oldest.num != mine:
            self.target.retry(
                lambda: self.target.api.change_discussion_status(
                    self.target.repo_id,
                    mine,
                    "closed",
                    comment=f"The same as #{oldest.num}, which was opened just before.",
                )
            )
        return oldest

    def updating(self, pull: Pull) -> Pull:
        """Say in the title of an open request that its commits are being replaced, where that takes several."""
        if pull.status != "open" or len(self.target.release.branches) == 1:
            return pull
        title = f"{_UPDATING} {self.target.release.title}"
        self.target.retry(lambda: self.target.api.rename_discussion(self.target.repo_id, pull.num, title))
        return replace(pull, title=title)

    def describe(self, pull: Pull) -> None:
        """Give it the release's title and description, and take it out of draft."""
        api, repo_id, retry = self.target.api, self.target.repo_id, self.target.retry
        title, text = self.target.release.title, self._text()
        if pull.title != title:
            retry(lambda: api.rename_discussion(repo_id, pull.num, title))
        if pull.comment and pull.description != text:
            comment = pull.comment
            retry(lambda: api.edit_discussion_comment(repo_id, pull.num, comment, text))
        if pull.status == "draft":
            self._ready(pull)

    def _ready(self, pull: Pull) -> None:
        try:
            self.target.retry(lambda: self.target.api.change_discussion_status(self.target.repo_id, pull.num, "open"))
        except Exception as error:
            if status_of(error) not in (400, 403, 409):  # a draft that its author may not open is still a request
                raise

    def _text(self) -> str:
        return f"{self.target.release.description.strip()}\n\n{mark(self.target.release.base)}".strip()


def _waiting(pulls: Sequence[Pull]) -> list[Pull]:
    return [pull for pull in pulls if pull.status in ("draft", "open")]


def _oldest(pulls: Sequence[Pull]) -> Pull:
    return min(pulls, key=lambda pull: pull.num)


def _description(details: DiscussionWithDetails) -> DiscussionComment | None:
    first = next((event for event in details.events if isinstance(event, DiscussionComment)), None)
    return first if first and first.author == details.author else None
