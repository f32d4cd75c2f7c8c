"""Editing the cards of published repos, and removing their files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from hubbot.hub.access import Patience, hub_api, speaking_plainly, status_of
from hubbot.hub.publish.pulls import Pulls
from hubbot.hub.publish.release import Pace, RepoRelease, kept
from hubbot.hub.publish.target import Target

_KEPT = frozenset({"README.md", "hubbot.json", ".gitattributes"})
_CARD = "README.md"


def take_back(
    repo: str,
    edited: Callable[[str], str],
    *,
    delete: bool,
    token: str | None,
    endpoint: str | None,
    patience: Patience | None = None,
) -> str:
    """Edit the card on every branch of a repo, main last, and with `delete` remove everything but card and record.

    Done again, it changes nothing. Returns main's commit. Raises HubFailed, TokenRefused, PublishConflict.
    """
    patience = patience or Patience()
    api = hub_api(token, endpoint)
    with speaking_plainly(repo, token=token, endpoint=endpoint):
        branches = [ref.name for ref in patience.insist(lambda: api.list_repo_refs(repo)).branches]
        commit = ""
        for branch in sorted(branches, key=lambda name: name == "main"):
            commit = _edit(api, repo, branch, edited, delete=delete, patience=patience)
    return commit


def withdraw(
    repo: str, *, why: str, token: str | None, endpoint: str | None, patience: Patience | None = None
) -> list[int]:
    """Close what waits of our pull requests in a repo, so that nobody merges them. Returns their numbers.

    A repo that does not exist has none. Raises HubFailed, TokenRefused.
    """
    patience = patience or Patience()
    api = hub_api(token, endpoint)
    with speaking_plainly(repo, token=token, endpoint=endpoint):
        if not patience.insist(lambda: api.repo_exists(repo)):
            return []
        target = Target(RepoRelease(repo_id=repo, branches={}, title=""), token, endpoint, patience, kept())
        waiting = [pull.num for pull in Pulls(target).all_waiting()]
        for num in waiting:
            patience.insist(partial(api.change_discussion_status, repo, num, "closed", comment=why))
    return waiting


def _edit(api: HfApi, repo: str, branch: str, edited: Callable[[str], str], *, delete: bool, patience: Patience) -> str:
    pace = kept(patience.sleep)
    for attempt in range(patience.tries):
        try:
            return _edit_once(api, repo, branch, edited, pace, delete=delete)
        except Exception as error:
            # Somebody else committed meanwhile (412), or an answer was lost: look again, then edit what is there.
            if status_of(error) != 412 and not patience.pause(attempt, error):
                raise
    raise AssertionError  # the last try returned or raised


def _edit_once(api: HfApi, repo: str, branch: str, edited: Callable[[str], str], pace: Pace, *, delete: bool) -> str:
    head = str(api.model_info(repo, revision=branch).sha)
    files = api.list_repo_files(repo, revision=head)
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    if delete:
        operations += [CommitOperationDelete(path_in_repo=path) for path in files if path not in _KEPT]
    card = Path(api.hf_hub_download(repo, _CARD, revision=head)).read_text(encoding="utf-8") if _CARD in files else ""
    wanted = edited(card)
    if wanted != card:
        operations.append(CommitOperationAdd(path_in_repo=_CARD, path_or_fileobj=wanted.encode()))
    if not operations:
        return head
    pace.take()
    made = api.create_commit(repo, operations, commit_message="Taken back", revision=branch, parent_commit=head)
    return str(made.oid)
