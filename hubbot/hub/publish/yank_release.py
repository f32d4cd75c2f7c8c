"""Editing the cards of published repos, and removing their files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from hubbot.hub.client import Hub
from hubbot.hub.failures import translated_hub_errors
from hubbot.hub.publish.pull_requests import Pulls
from hubbot.hub.publish.repo_release import RepoRelease
from hubbot.hub.publish.target import Target
from hubbot.hub.read.reader import Reader
from hubbot.hub.retry import status_of
from hubbot.hub.session import within

_KEPT = frozenset({"README.md", "hubbot.json", ".gitattributes"})
_CARD = "README.md"


def yank_release(repo: str, edited: Callable[[str], str], hub: Hub, *, delete: bool) -> str:
    """Edit the card on every branch of a repo, main last, and with `delete` remove everything but card and record.

    Done again, it changes nothing. Returns main's commit. Raises HubFailed, TokenRefused, PublishConflict.
    """
    with translated_hub_errors(repo, hub):
        branches = [ref.name for ref in hub.retry(lambda: hub.api.list_repo_refs(repo)).branches]
        commit = ""
        for branch in sorted(branches, key=lambda name: name == "main"):
            commit = _edit(hub, repo, branch, edited, delete=delete)
    return commit


def close_pull_requests(repo: str, hub: Hub, *, why: str) -> list[int]:
    """Close what waits of our pull requests in a repo, so that nobody merges them. Returns their numbers.

    A repo that does not exist has none. Raises HubFailed, TokenRefused.
    """
    with translated_hub_errors(repo, hub):
        if not hub.retry(lambda: hub.api.repo_exists(repo)):
            return []
        target = Target(RepoRelease(repo_id=repo, branches={}, title=""), hub)
        waiting = [pull.num for pull in Pulls(target).all_waiting()]
        for num in waiting:
            hub.retry(partial(hub.api.change_discussion_status, repo, num, "closed", comment=why))
    return waiting


def _edit(hub: Hub, repo: str, branch: str, edited: Callable[[str], str], *, delete: bool) -> str:
    for attempt in range(hub.retry.attempts):
        try:
            with within(hub.retry.seconds):
                return _edit_once(hub, repo, branch, edited, delete=delete)
        except Exception as error:
            # Somebody else committed meanwhile (412), or an answer was lost: look again, then edit what is there.
            if status_of(error) != 412 and not hub.retry.back_off(attempt, error):
                raise
    raise AssertionError  # the last try returned or raised


def _edit_once(hub: Hub, repo: str, branch: str, edited: Callable[[str], str], *, delete: bool) -> str:
    api = hub.api
    head = str(api.model_info(repo, revision=branch).sha)
    files = api.list_repo_files(repo, revision=head)
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    if delete:
        operations += [CommitOperationDelete(path_in_repo=path) for path in files if path not in _KEPT]
    card = (Reader(hub).file(repo, head, _CARD) or b"").decode("utf-8", "replace")
    wanted = edited(card)
    if wanted != card:
        operations.append(CommitOperationAdd(path_in_repo=_CARD, path_or_fileobj=wanted.encode()))
    if not operations:
        return head
    hub.commits.acquire()
    made = api.create_commit(repo, operations, commit_message="Taken back", revision=branch, parent_commit=head)
    return str(made.oid)
