"""After a maintainer has merged: the other revisions of the pull request become branches, without any local file."""

from __future__ import annotations

import re
from collections.abc import Mapping

from huggingface_hub import CommitOperationCopy, CommitOperationDelete

from hubbot.hub.client import Hub
from hubbot.hub.failures import translated_hub_errors
from hubbot.hub.publish.create_missing import ensure_branch
from hubbot.hub.publish.pull_requests import Pull, Pulls
from hubbot.hub.publish.repo_release import MAIN, RepoRelease
from hubbot.hub.publish.target import Target, Tree
from hubbot.hub.retry import status_of
from hubbot.hub.session import within

__all__ = ["finish_merged"]

_REVISION = re.compile(r"\[branch ([A-Za-z0-9][\w.-]*)\]$")  # how `publish` titles the commits of other revisions


def finish_merged(repo_id: str, hub: Hub) -> Mapping[str, str]:
    """Bring every revision of our merged pull request to the branch of its name, if it is not there.

    A missing branch begins at the pull request's commit; one of an older release gets a commit that copies
    the files on the Hub itself. Returns revision -> commit for those that changed; nothing where main does
    not hold what the newest pull request of ours offered.
    Raises TokenRefused, HubFailed.
    """
    target = Target(RepoRelease(repo_id=repo_id, branches={}, title=""), hub)
    with translated_hub_errors(repo_id, hub):
        main = target.tree(target.refs()[MAIN])
        pull = Pulls(target).latest()
        if pull is None or pull.status != "merged" or main.record is None:
            return {}
        changed = {}
        for revision, tree in _offered(target, pull, main).items():
            there = target.refs().get(revision)
            if there is None:
                ensure_branch(target, revision, tree.sha)
                changed[revision] = tree.sha
            elif not _same(target.tree(there), tree):
                changed[revision] = _copy(target, revision, tree)
        return changed


def _offered(target: Target, pull: Pull, main: Tree) -> dict[str, Tree]:
    """Revision -> the newest commit of the pull request that holds it as part of main's release."""
    wanted = target.fingerprint(main.record)
    found: dict[str, Tree] = {}
    history = target.history(pull.ref)
    for commit in history:
        name = _REVISION.search(commit.title)
        if name and name[1] not in found:
            tree = target.tree(commit.commit_id)
            if target.fingerprint(tree.record) == wanted:
                found[name[1]] = tree
    return found


def _same(one: Tree, other: Tree) -> bool:
    return {p: (f.sha256, f.blob_id) for p, f in one.files.items()} == {
        p: (f.sha256, f.blob_id) for p, f in other.files.items()
    }


def _copy(target: Target, revision: str, offered: Tree) -> str:
    """One commit that makes a branch hold what a commit of the same repo holds; large files are not moved."""
    for attempt in range(target.retry.attempts):
        head = target.tree(target.refs()[revision])
        if _same(head, offered):
            return head.sha
        operations = [
            CommitOperationCopy(path, path, src_revision=offered.sha)
            for path, file in offered.files.items()
            if path not in head.files
            or (file.sha256, file.blob_id) != (head.files[path].sha256, head.files[path].blob_id)
        ]
        gone = [CommitOperationDelete(path, is_folder=False) for path in head.files.keys() - offered.files.keys()]
        target.hub.commits.acquire()
        try:
            with within(target.retry.seconds):
                info = target.api.create_commit(
                    target.repo_id,
                    [*operations, *gone],
                    commit_message=f"The release of main ({revision})",
                    revision=revision,
                    parent_commit=head.sha,
                )
        except Exception as error:
            if status_of(error) != 412 and not target.retry.back_off(attempt, error):
                raise
        else:
            return str(info.oid)
    return target.refs()[revision]
