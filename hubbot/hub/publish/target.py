"""A repo that is published to: what it holds, and one commit that makes it hold what it should."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_session
from huggingface_hub.hf_api import GitCommitInfo
from huggingface_hub.utils._http import hf_raise_for_status

from hubbot import log
from hubbot.domain import File, Record
from hubbot.errors import BadRecord, HubFailed, PublishConflict
from hubbot.hub.client import Hub
from hubbot.hub.publish.local_files import CheckedFile, LocalFile
from hubbot.hub.publish.repo_release import Published, RepoRelease
from hubbot.hub.read.contents import RemoteFile
from hubbot.hub.read.listing import tree_items
from hubbot.hub.read.reader import Reader
from hubbot.hub.read.shapes import entries, mapping, number, text
from hubbot.hub.retry import Retry, status_of
from hubbot.hub.session import seconds_for, within
from hubbot.record.file import FILE_NAME, from_json
from hubbot.record.fingerprint import fingerprint_of
from hubbot.settings.sections import format_size

__all__ = ["CARD", "Target", "Tree", "compared", "land", "outdated", "same"]

CARD = "README.md"
MOST_REBASES = 10  # times that others may be faster before we give in


@dataclass(frozen=True, slots=True)
class Tree:
    """A revision as it was at one commit."""

    sha: str
    files: Mapping[str, RemoteFile]
    record: Record | None  # its hubbot.json, None where it has none that can be read


@dataclass(slots=True)
class Target:
    """The repo of a release, seen with one token."""

    release: RepoRelease
    hub: Hub
    xet: bool | None = None  # None: the server is asked
    api: HfApi = field(init=False)
    _trees: dict[str, Tree] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.api = self.hub.api

    @property
    def repo_id(self) -> str:
        return self.release.repo_id

    @property
    def url(self) -> str:
        return f"{self.hub.endpoint}/{self.repo_id}"

    @property
    def retry(self) -> Retry:
        return self.hub.retry

    def refs(self) -> dict[str, str]:
        """Branch or refs/pr/N -> commit."""
        refs = self.retry(lambda: self.api.list_repo_refs(self.repo_id, include_pull_requests=True))
        pulls = {ref.ref: ref.target_commit for ref in refs.pull_requests or ()}
        return {branch.name: branch.target_commit for branch in refs.branches} | pulls

    def tree(self, sha: str) -> Tree:
        if sha not in self._trees:
            items = tree_items(Reader(self.hub), self.repo_id, sha)
            files = {file.path: file for item in items if item.get("type") == "file" and (file := self._remote(item))}
            self._trees[sha] = Tree(sha, files, self._record(sha) if FILE_NAME in files else None)
        return self._trees[sha]

    def _remote(self, item: Mapping[str, Any]) -> RemoteFile:
        path, size, large = item.get("path"), number(item.get("size")), mapping(item.get("lfs"))
        if not isinstance(path, str) or size is None:
            raise HubFailed(f"The Hub lists a file of {self.repo_id} without a name or a size. Run it again later.")
        return RemoteFile(path=path, size=size, sha256=text(large.get("oid")), blob_id=text(item.get("oid")))

    def _record(self, sha: str) -> Record | None:
        found = Reader(self.hub).file(self.repo_id, sha, FILE_NAME)
        try:
            return from_json(found) if found is not None else None
        except BadRecord:
            return None

    def fingerprint(self, record: Record | None) -> str | None:
        return None if record is None else fingerprint_of(record, self.release.family)

    def check_card(self, card: Path, revision: str) -> None:
        """Ask the Hub whether it will take a README.md, before anything is uploaded."""
        written = card.read_text(encoding="utf-8")

        def ask() -> None:
            answer = get_session().post(
                f"{self.hub.endpoint}/api/validate-yaml",
                json={"content": written, "repoType": "model"},
                headers=self.hub.headers,
            )
            if answer.status_code == 400:
                told = entries(mapping(answer.json()).get("errors"))
                problems = "; ".join(str(mapping(problem).get("message")) for problem in told)
                raise HubFailed(
                    f"The Hub refuses the metadata of {self.repo_id}'s card ({revision}): {problems}. Nothing was uploaded. Mend the setting or the source's field that it comes from."
                )
            hf_raise_for_status(answer)

        self.retry(ask)

    def upload(self, operations: Sequence[CommitOperationAdd], revision: str) -> None:
        """Send the large files among the additions to the storage; no reader sees them before a commit."""
        size = sum(operation.upload_info.size for operation in operations)
        log.say(f"{self.repo_id} ({revision}): {len(operations)} files, {format_size(size)}")
        with self.transport():
            self.retry(
                lambda: self.api.preupload_lfs_files(
                    self.repo_id, operations, revision=revision, free_memory=False, num_threads=4
                ),
                seconds=seconds_for(size),
            )

    def title(self, sha: str) -> str:
        """The first line of a commit's message."""
        return self.history(sha)[0].title

    def history(self, revision: str) -> list[GitCommitInfo]:
        """The commits of a revision, the newest first. Raises HubFailed where the Hub shows none."""
        found = self.retry(lambda: self.api.list_repo_commits(self.repo_id, revision=revision))
        if not found:  # every repo has a first one
            raise HubFailed(f"The Hub shows no commit of {self.repo_id} ({revision}). Run it again later.")
        return found

    @contextmanager
    def transport(self) -> Iterator[None]:
        """Use the client's xet protocol only where the server has it: without, the client would fail, not fall back."""
        if self.xet is None:
            self.xet = not constants.HF_HUB_DISABLE_XET and self._has_xet()
        before = constants.HF_HUB_DISABLE_XET
        constants.HF_HUB_DISABLE_XET = not self.xet  # the library has no other switch
        try:
            yield
        finally:
            constants.HF_HUB_DISABLE_XET = before

    def _has_xet(self) -> bool:
        url = f"{self.hub.endpoint}/api/models/{self.repo_id}/xet-write-token/main"
        answer = self.retry(lambda: get_session().get(url, headers=self.hub.headers))
        return answer.status_code == 200 and "x-xet-cas-url" in answer.headers


# --- one commit ---------------------------------------------------------------------------------------


def land(
    target: Target,
    revision: str,
    wanted: Mapping[str, LocalFile],
    *,
    title: str,
    done: Callable[[Tree], bool],
    ours: Callable[[Tree], bool],
    obsolete: Callable[[Tree], list[str]],
) -> tuple[Tree, bool]:
    """Make a revision hold the wanted files with one commit. Returns it, and whether it changed to hold them.

    done: a tree that is left as it is, whatever its bytes; ours: a tree that says it is this release.
    Before every try the revision is looked at, so that a commit whose answer was lost is not made twice.
    Others may commit meanwhile: what they did to other files stays; if they changed the card or the record,
    PublishConflict, for then it takes more than a commit to decide.
    """
    first: Tree | None = None
    made: str | None = None
    rebases = attempt = 0
    while True:
        tree = target.tree(_head(target, revision))
        if all(file.equals(tree.files.get(path)) for path, file in wanted.items()) and not obsolete(tree):
            return tree, first is not None and tree.sha != first.sha
        if done(tree):
            return tree, False
        if tree.sha == made:
            compared(target, revision, tree, wanted)  # raises: the Hub took the commit and holds something else
        if first is None:
            first = tree
        elif not ours(tree):
            _refuse_rivals(target, first, tree, revision)
        try:
            made = _commit(target, revision, tree, wanted, title=title, obsolete=obsolete(tree))
        except Exception as error:
            if status_of(error) == 412 and rebases < MOST_REBASES:
                rebases += 1
            elif target.retry.back_off(attempt, error):
                attempt += 1
            else:
                raise
        # Whatever the answer was, the next look decides.


def _head(target: Target, revision: str) -> str:
    refs = target.refs()
    if revision not in refs:
        raise HubFailed(f"{target.repo_id} has lost its revision {revision} meanwhile. Run `hubbot publish` again.")
    return refs[revision]


def _refuse_rivals(target: Target, first: Tree, now: Tree, revision: str) -> None:
    """Raise PublishConflict where somebody else has changed, since we began, what only one can decide."""
    for path in (CARD, FILE_NAME):
        if first.files.get(path) != now.files.get(path):
            msg = f"Somebody else changed {path} of {target.repo_id} ({revision}) while it was being published. Nothing of theirs was overwritten; run `hubbot publish` again."
            raise PublishConflict(msg)


def _commit(
    target: Target,
    revision: str,
    tree: Tree,
    wanted: Mapping[str, LocalFile],
    *,
    title: str,
    obsolete: Sequence[str],
) -> str:
    """Commit what differs, on top of `tree` and nothing else; returns the commit's sha."""
    changed = {path: file for path, file in wanted.items() if not file.equals(tree.files.get(path))}
    with _sent(target, changed, revision) as additions:
        target.hub.commits.acquire()
        with target.transport(), within(target.retry.seconds):
            info = target.api.create_commit(
                target.repo_id,
                [*additions, *(CommitOperationDelete(path, is_folder=False) for path in obsolete)],
                commit_message=title,
                revision=revision,
                parent_commit=tree.sha,
            )
    return str(info.oid)


@contextmanager
def _sent(target: Target, files: Mapping[str, LocalFile], revision: str) -> Iterator[list[CommitOperationAdd]]:
    """The additions of a commit, the large ones in the storage: the bytes that were checked and no others.

    Raises HubFailed where a file turned out to be another one; nothing of it is visible then.
    """
    with ExitStack() as opened, target.transport():
        large = {path: opened.enter_context(CheckedFile(file)) for path, file in files.items() if file.content is None}
        additions = [_addition(path, file, None if target.xet else large.get(path)) for path, file in files.items()]
        if target.xet:  # which reads the paths by itself
            for stream in large.values():
                stream.check(whole=True)
        target.upload(additions, revision)
        for stream in large.values():
            stream.check(whole=False)
        yield additions


def _addition(path: str, file: LocalFile, stream: CheckedFile | None) -> CommitOperationAdd:
    addition = CommitOperationAdd(path, file.path if file.content is None else file.content)
    addition.upload_info.sha256 = bytes.fromhex(file.sha256)  # known already
    if stream is not None:
        addition.path_or_fileobj = stream
    return addition


def outdated(release: RepoRelease, wanted: Mapping[str, LocalFile], new: Record | None, tree: Tree) -> list[str]:
    """Files that an older release of ours has left and the new one has no place for."""
    old = _files(tree.record)
    kept = _files(new)
    found = []
    for path, remote in tree.files.items():
        if path in wanted or any(_is(path, file) for file in kept):
            continue
        ours = any(_is(path, file) and same(remote, file) for file in old)
        if ours or any(fnmatch.fnmatchcase(path, pattern) for pattern in release.replaces):
            found.append(path)
    return sorted(found)


def _files(record: Record | None) -> list[File]:
    return [] if record is None else [file for variant in record.variants for file in variant.files]


def _is(path: str, file: File) -> bool:
    """Whether a path of the repo is where a record's file, named from the output folder, was put."""
    return file.path == path or file.path.endswith(f"/{path}")


def same(remote: RemoteFile, file: File) -> bool:
    """Whether the Hub's file is the one that a record lists, as far as the Hub tells: of small files the size."""
    return remote.sha256 == file.sha256 if remote.sha256 else remote.size == file.size


def compared(target: Target, revision: str, tree: Tree, wanted: Mapping[str, LocalFile]) -> tuple[Published, ...]:
    """Every wanted file as the Hub holds it at that commit. Raises HubFailed where one differs from the local file."""
    wrong = [path for path, file in wanted.items() if not file.equals(tree.files.get(path))]
    if wrong:
        msg = f"{target.repo_id} at {tree.sha} holds other bytes than were sent: {', '.join(wrong[:5])}. Do not use that commit; run `hubbot publish --force` and report it."
        raise HubFailed(msg)
    return tuple(
        Published(revision=revision, path=path, size=file.size, sha256=file.sha256)
        for path, file in sorted(wanted.items())
    )
