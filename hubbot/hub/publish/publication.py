"""Publishing a release: one repo, one commit for each revision or one pull request, and a receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from hubbot.domain import HUB_ID, Record
from hubbot.errors import BadSettings, HubFailed, PublishConflict, SourceRefused, TokenRefused
from hubbot.hub.client import Hub
from hubbot.hub.failures import translated_hub_errors
from hubbot.hub.publish.create_missing import ensure_branch, ensure_repo
from hubbot.hub.publish.local_files import LocalFile, hash_files, need_files
from hubbot.hub.publish.pull_requests import Pull, Pulls
from hubbot.hub.publish.repo_release import MAIN, Published, Receipt, RepoRelease
from hubbot.hub.publish.target import CARD, Target, Tree, compared, land, outdated, same
from hubbot.record.file import FILE_NAME, from_json

__all__ = ["publish"]

MOST_ROUNDS = 5  # times that another machine may mix its bytes into a release of several branches before we give in


def publish(
    release: RepoRelease,
    hub: Hub,
    *,
    mode: Literal["pr", "main"],
    force: bool = False,
    xet: bool | None = None,
) -> Receipt:
    """Bring a release to the Hub; called again, it goes on or finds that nothing is left to do.

    mode main: one commit on each revision, the base last. mode pr: one pull request, which holds the base's files at
    its head and the other revisions as commits below; once it is merged, the next call makes the branches.
    The same fingerprint in the repo's hubbot.json means: done, unless `force`.
    xet: use the client's xet protocol for uploads; None: where the server offers it.
    Raises TokenRefused, PublishConflict, HubFailed.
    """
    if not HUB_ID.fullmatch(release.repo_id):
        raise BadSettings(f"{release.repo_id!r} is no repo to publish to. Name the owner with --namespace.")
    if not hub.token:
        raise TokenRefused("Publishing needs a token. Set HF_TOKEN to one that may write, or leave --publish out.")
    target = Target(release, hub, xet)
    with _translated_publish_errors(release.repo_id, hub):
        hub.commits.allowed()
        publication = _Publication(target, force=force)
        for revision, files in release.branches.items():
            need_files(files.values())
            if CARD in files:
                target.check_card(files[CARD], revision)
        created = ensure_repo(target)
        _refuse_another_source(publication)
        receipt = _to_branches(publication) if mode == "main" else _to_pull_request(publication)
    return replace(receipt, created=created)


def _refuse_another_source(publication: _Publication) -> None:
    """Raise PublishConflict where main holds a release of another model: one of the two would overwrite the other for ever."""
    release, target = publication.release, publication.target
    made = publication.record(release.base)
    there = target.tree(target.refs()[MAIN]).record if MAIN in target.refs() else None
    if made is None or there is None or made.source.repo is None or there.source.repo in (None, made.source.repo):
        return
    msg = f"{release.repo_id} holds a release of {there.source.repo}, and this one is of {made.source.repo}. Nothing was overwritten. Give the repos another name with publish.gguf, publish.gptq and their like, such as '{{owner}}-{{name}}-GGUF', or take the old release out of the repo."
    raise PublishConflict(msg)


@contextmanager
def _translated_publish_errors(repo_id: str, hub: Hub) -> Iterator[None]:
    """Errors in our words; a target that is gone is the Hub's failure, not a bad source."""
    try:
        with translated_hub_errors(repo_id, hub):
            yield
    except SourceRefused as error:
        raise HubFailed(str(error)) from None


@dataclass
class _Publication:
    """A release on its way: what is wanted of every revision, and how to see that it is there."""

    target: Target
    force: bool

    @cached_property
    def hashed(self) -> Mapping[Path, LocalFile]:
        """Every file with its hashes; many gigabytes to read, so not before there is something to do."""
        return hash_files(self.release.branches, self.release.recorded)

    @property
    def release(self) -> RepoRelease:
        return self.target.release

    def revisions(self) -> list[str]:
        """The base last: who finds it finds the others."""
        return sorted(self.release.branches, key=lambda name: name == self.release.base)

    def files(self, revision: str) -> dict[str, LocalFile]:
        return {path: self.hashed[file] for path, file in self.release.branches[revision].items()}

    def record(self, revision: str) -> Record | None:
        path = self.release.branches[revision].get(FILE_NAME)
        return from_json(path.read_bytes(), origin=str(path)) if path else None

    def held(self, revision: str, refs: Mapping[str, str] | None = None) -> Tree | None:
        """A branch that is marked as this very release already. refs: as they were read just now."""
        sha = (refs or self.target.refs()).get(revision)
        tree = self.target.tree(sha) if sha and not self.force else None
        return tree if tree and self.is_ours(tree, revision) else None

    def whole(self) -> dict[str, Tree] | None:
        """Every branch, where all are marked as this release and hold the files that the base's record lists.

        Two machines do not always make the same bytes: what counts is that they are of one of them.
        """
        refs = self.target.refs()
        base = self.held(self.release.base, refs)
        if base is None:
            return None
        found = {revision: self.held(revision, refs) for revision in self.revisions()}
        if any(tree is None or not self.describes(base.record, tree, name) for name, tree in found.items()):
            return None
        return {name: tree for name, tree in found.items() if tree}

    def is_ours(self, tree: Tree, revision: str) -> bool:
        """Whether a tree is marked as this very release."""
        made = self.target.fingerprint(self.record(revision))
        return made is not None and made == self.target.fingerprint(tree.record)

    def is_done(self, tree: Tree, revision: str) -> bool:
        """Whether a tree is marked as this very release and holds the bytes that were made here."""
        return self.is_ours(tree, revision) and self.describes(self.record(revision), tree, revision)

    def describes(self, record: Record | None, tree: Tree, revision: str) -> bool:
        """Whether the files of a revision are those that a record of this release lists, made here or elsewhere."""
        listed = {file.path: file for variant in record.variants for file in variant.files} if record else {}
        for path, local in self.release.branches[revision].items():
            file = next((file for name, file in listed.items() if str(local).endswith(f"/{name}")), None)
            if file is not None and not (path in tree.files and same(tree.files[path], file)):
                return False
        return True

    def outdated(self, revision: str) -> Callable[[Tree], list[str]]:
        return partial(outdated, self.release, self.files(revision), self.record(revision))

    def land(self, revision: str) -> tuple[Tree, bool]:
        """Commit a revision to the branch of its name."""
        return land(
            self.target,
            revision,
            self.files(revision),
            title=self.release.title,
            done=lambda tree: not self.force and self.is_done(tree, revision),
            ours=lambda tree: self.is_ours(tree, revision),
            obsolete=self.outdated(revision),
        )

    def stack(self, revision: str, pull: Pull) -> tuple[Tree, bool]:
        """Commit a revision to the pull request, on top of what is there."""
        others = {path for files in self.release.branches.values() for path in files}
        wanted = self.files(revision)

        def obsolete(tree: Tree) -> list[str]:
            stale = set(self.outdated(revision)(tree)) | (others & tree.files.keys()) - wanted.keys()
            return sorted(stale)

        def done(tree: Tree) -> bool:
            title = self.stacked_title(revision)
            if self.force:
                return False
            if self.is_done(tree, revision) and self.target.title(tree.sha) == title:
                return True
            return revision != self.release.base and revision in _stacked(self, pull)

        return land(
            self.target,
            pull.ref,
            wanted,
            title=self.stacked_title(revision),
            done=done,
            ours=lambda tree: self.is_ours(tree, revision),
            obsolete=obsolete,
        )

    def stacked_title(self, revision: str) -> str:
        return self.release.title if revision == self.release.base else f"{self.release.title} [branch {revision}]"

    def receipt(
        self,
        status: Literal["published", "pull-request", "unchanged", "declined"],
        commits: Mapping[str, str],
        pull: Pull | None = None,
        files: tuple[Published, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> Receipt:
        return Receipt(
            repo_id=self.release.repo_id,
            url=self.target.url,
            status=status,
            commits=commits,
            pull_request=pull.num if pull else None,
            pull_request_url=f"{self.target.url}/discussions/{pull.num}" if pull else None,
            files=files,
            notes=notes,
        )


def _to_branches(publication: _Publication) -> Receipt:
    if held := publication.whole():
        return publication.receipt("unchanged", {revision: tree.sha for revision, tree in held.items()})
    files: dict[tuple[str, str], Published] = {}
    for _ in range(MOST_ROUNDS):
        commits, changed = _land_all(publication)
        files |= {(file.revision, file.path): file for file in changed}
        if (
            publication.force or len(commits) == 1 or not changed or publication.whole()
        ):  # unchanged: every branch holds what was made here
            return publication.receipt("published" if files else "unchanged", commits, files=tuple(files.values()))
    msg = f"Somebody else goes on publishing the same release to {publication.release.repo_id}. Run `hubbot publish` again when they have ended."
    raise PublishConflict(msg)


def _land_all(publication: _Publication) -> tuple[dict[str, str], tuple[Published, ...]]:
    """Commit every revision that does not hold what was made here. Returns revision -> commit, and the files of those that changed."""
    commits: dict[str, str] = {}
    files: list[Published] = []
    for revision in publication.revisions():
        ensure_branch(publication.target, revision)
        tree, committed = publication.land(revision)
        commits[revision] = tree.sha
        files += compared(publication.target, revision, tree, publication.files(revision)) if committed else ()
    return commits, tuple(files)


def _to_pull_request(publication: _Publication) -> Receipt:
    target = publication.target
    pulls = Pulls(target)
    if base := publication.held(publication.release.base):
        return _finish_merged(publication, pulls, base)
    pull = pulls.latest()
    if pull and pull.status == "closed" and not publication.force and _is_stacked(publication, pull):
        note = f"Pull request {pull.num} with this release was closed without merging; it is not opened again."
        return publication.receipt("declined", {}, pull, notes=(note,))
    if pull is None or pull.status in ("closed", "merged"):
        ensure_branch(target, publication.release.base)
        pull = pulls.open()
    if not publication.force and _is_stacked(publication, pull):
        commits = _stacked(publication, pull)
        pulls.describe(pull)
        return publication.receipt("pull-request", commits, pull)
    pull = pulls.updating(pull)
    commits, files = _stack_all(publication, pull)
    pulls.describe(pull)
    return publication.receipt("pull-request", commits, pull, files)


def _stack_all(publication: _Publication, pull: Pull) -> tuple[dict[str, str], tuple[Published, ...]]:
    """Commit every revision to the pull request, the base last. What a rival bot has stacked there meanwhile stands."""
    commits: dict[str, str] = {}
    files: list[Published] = []
    for revision in publication.revisions():
        if revision != publication.release.base and not publication.force:
            stacked = _stacked(publication, pull)
            if revision in stacked:
                commits[revision] = stacked[revision]
                continue
        tree, committed = publication.stack(revision, pull)
        commits[revision] = tree.sha
        files += compared(publication.target, revision, tree, publication.files(revision)) if committed else ()
    return commits, tuple(files)


def _stacked(publication: _Publication, pull: Pull) -> dict[str, str]:
    """Revision -> the newest commit of the pull request that holds it as this release has it."""
    target = publication.target
    history = target.history(pull.ref)
    found: dict[str, str] = {}
    for revision in publication.release.branches:
        for commit in history:
            if commit.title == publication.stacked_title(revision) and publication.is_ours(
                target.tree(commit.commit_id), revision
            ):
                found[revision] = commit.commit_id
                break
    return found


def _is_stacked(publication: _Publication, pull: Pull) -> bool:
    """Whether a pull request holds all of this release, the base's files at its head."""
    found = _stacked(publication, pull)
    last = publication.revisions()[-1]
    return found.keys() == publication.release.branches.keys() and found[last] == publication.target.refs().get(
        pull.ref
    )


def _finish_merged(publication: _Publication, pulls: Pulls, base: Tree) -> Receipt:
    """After the merge: the other revisions become branches, at the commits of the pull request where there are none.

    What the base's record does not describe is not committed here: another machine's bytes belong to it.
    """
    commits: dict[str, str] = {}
    files: list[Published] = []
    changed = False
    pull = pulls.latest()
    stacked = _stacked(publication, pull) if pull else {}
    for revision in publication.revisions():
        if revision not in publication.target.refs() and revision in stacked:
            ensure_branch(publication.target, revision, stacked[revision])
            changed = True
        if (held := publication.held(revision)) and publication.describes(base.record, held, revision):
            commits[revision] = held.sha
            continue
        ensure_branch(publication.target, revision)
        tree, committed = publication.land(revision)
        commits[revision] = tree.sha
        changed = changed or committed
        files += compared(publication.target, revision, tree, publication.files(revision)) if committed else ()
    return publication.receipt("published" if changed else "unchanged", commits, pull, tuple(files))
