"""The repo and the branches that a release goes to, made where they are not there yet."""

from __future__ import annotations

from hubbot.hub.publish.repo_release import MAIN
from hubbot.hub.publish.target import Target
from hubbot.hub.retry import status_of
from hubbot.hub.session import within

__all__ = ["ensure_branch", "ensure_repo"]


def ensure_repo(target: Target) -> bool:
    """Make the repo if it is not there; True if so. Two makers at once end with one repo."""
    for attempt in range(target.retry.attempts):
        try:
            if target.retry(lambda: target.api.repo_exists(target.repo_id)):
                return False
            with within(target.retry.seconds):  # the client repeats it for ever while the Hub tells of a conflict
                target.api.create_repo(target.repo_id, private=target.release.private)
        except Exception as error:
            if status_of(error) == 409:
                return False
            if not target.retry.back_off(attempt, error):
                raise
        else:
            return True
    raise AssertionError  # the last try returned or raised


def ensure_branch(target: Target, revision: str, start: str | None = None) -> None:
    """Make a branch at a commit, by default at the repo's first one, which holds no files of anybody."""
    for attempt in range(target.retry.attempts):
        try:
            if revision in target.refs():
                return
            start = start or target.history(MAIN)[-1].commit_id
            target.hub.commits.acquire()
            with within(target.retry.seconds):
                target.api.create_branch(target.repo_id, branch=revision, revision=start)
        except Exception as error:
            if status_of(error) != 409 and not target.retry.back_off(attempt, error):
                raise
