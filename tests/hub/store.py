"""Repositories in memory: commits over content-addressed files, refs, discussions."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.hub.blobs import Blobs, git_blob_id, lfs_pointer
from tests.hub.refusal import Refusal, no_entry, no_revision

MAIN = "refs/heads/main"
GITATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy "
    "*.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite "
    "*.tgz *.wasm *.xz *.zip *.zst *tfevents*".split()
)
SHA = re.compile(r"[0-9a-f]{40}")
LARGE = 10 * 1000 * 1000


@dataclass(frozen=True, slots=True)
class Entry:
    size: int
    sha256: str
    blob_id: str  # of the content, or of the pointer of a large file
    lfs: bool

    @property
    def oid(self) -> str:
        """What `preupload` and ETags call this content."""
        return self.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True, slots=True)
class Commit:
    id: str
    parents: tuple[str, ...]
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, Entry]


@dataclass(slots=True)
class Discussion:
    num: int
    title: str
    author: str
    created: str
    is_pull_request: bool
    status: str = "open"
    base: str = MAIN
    base_commit: str = ""  # where the pull request branched off
    merge_commit: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


@dataclass(slots=True)
class Repo:
    kind: str  # model, dataset, space
    id: str
    private: bool
    created: str
    gated: str | bool = False
    disabled: bool = False
    downloads: int = 0
    likes: int = 0
    trending: float = 0
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)  # sha256 of uploaded large files
    discussions: dict[int, Discussion] = field(default_factory=dict)
    access: dict[str, str] = field(default_factory=dict)  # user -> pending, accepted, rejected
    modified: str = ""
    derived: dict[str, Any] = field(default_factory=dict)  # of a commit: card, tags, … computed once
    protect: list[str] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def resolve(self, revision: str) -> str:
        """The commit id of a branch, tag, ref or (abbreviated) commit id."""
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.refs[ref]
        if revision in self.commits:
            return revision
        if re.fullmatch(r"[0-9a-f]{7,39}", revision):
            found = [commit for commit in self.commits if commit.startswith(revision)]
            if len(found) == 1:
                return found[0]
        raise no_revision(revision)

    def branch_of(self, revision: str) -> str:
        """The full name of a ref that can be committed to."""
        for ref in (revision, f"refs/heads/{revision}"):
            if ref in self.refs and not ref.startswith("refs/tags/"):
                return ref
        if f"refs/tags/{revision}" in self.refs or SHA.fullmatch(revision):
            raise Refusal(400, f"{revision} is not a branch")
        raise no_revision(revision)

    def commit_at(self, revision: str) -> Commit:
        return self.commits[self.resolve(revision)]

    def history(self, sha: str) -> list[Commit]:
        """First parents, newest first."""
        found = []
        while sha:
            commit = self.commits[sha]
            found.append(commit)
            sha = commit.parents[0] if commit.parents else ""
        return found


class Clock:
    """Seconds that never repeat, so that order by date is order of events."""

    def __init__(self) -> None:
        self._last = datetime.now(UTC) - timedelta(days=1)

    def now(self) -> str:
        self._last = max(datetime.now(UTC), self._last + timedelta(milliseconds=1))
        return stamp(self._last)


def stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class Store:
    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs
        self.clock = Clock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.owned: dict[str, dict[tuple[str, str], Repo]] = {}  # lower-case namespace -> its part of repos
        self.moved: dict[tuple[str, str], str] = {}
        self._first = self.small(GITATTRIBUTES.encode())
        self._serial = 0
        self._attributes: dict[str, list[tuple[re.Pattern[str], bool, bool]]] = {}  # of .gitattributes, by sha256

    # --- repositories ---------------------------------------------------------------------------------

    def create(self, kind: str, repo_id: str, *, private: bool, author: str) -> Repo:
        repo = Repo(kind=kind, id=repo_id, private=private, created=self.clock.now())
        self.add(repo)
        self.moved.pop((kind, repo_id), None)
        files = {".gitattributes": self._first}
        self.advance(repo, MAIN, files, "initial commit", "", author)
        return repo

    def add(self, repo: Repo) -> None:
        self.repos[repo.kind, repo.id] = repo
        self.owned.setdefault(repo.namespace.lower(), {})[repo.kind, repo.id] = repo

    def remove(self, repo: Repo) -> None:
        del self.repos[repo.kind, repo.id]
        del self.owned[repo.namespace.lower()][repo.kind, repo.id]

    def rename(self, repo: Repo, new_id: str) -> None:
        self.remove(repo)
        self.moved[repo.kind, repo.id] = new_id
        repo.id = new_id
        self.add(repo)

    # --- contents -------------------------------------------------------------------------------------

    def small(self, content: bytes) -> Entry:
        return Entry(len(content), self.blobs.put(content), git_blob_id(content), lfs=False)

    def large(self, sha256: str, size: int) -> Entry:
        return Entry(size, sha256, git_blob_id(lfs_pointer(sha256, size)), lfs=True)

    def is_large(self, repo: Repo, files: Mapping[str, Entry], path: str, size: int, sample: bytes) -> bool:
        """.gitattributes says so, or more than 10 MB, or bytes that are no text."""
        attributes = files.get(".gitattributes")
        if attributes and attributes.sha256 not in self._attributes:
            text = self.blobs.read(attributes.sha256).decode("utf-8", "replace")
            self._attributes[attributes.sha256] = _attributes(text)
        if attributes and _lfs_attribute(self._attributes[attributes.sha256], path):
            return True
        return size > LARGE or b"\0" in sample

    # --- commits --------------------------------------------------------------------------------------

    def advance(
        self,
        repo: Repo,
        ref: str,
        files: Mapping[str, Entry],
        title: str,
        message: str,
        author: str,
        *,
        also: tuple[str, ...] = (),
        date: str | None = None,
    ) -> Commit:
        """Put a new commit with these files on a ref."""
        parents = tuple(filter(None, (repo.refs.get(ref), *also)))
        self._serial += 1
        date = date or self.clock.now()
        seed = repr((repo.id, parents, title, date, self._serial)).encode()
        commit = Commit(hashlib.sha1(seed).hexdigest(), parents, title, message, author, date, dict(files))
        repo.commits[commit.id] = commit
        repo.refs[ref] = commit.id
        if ref == MAIN:
            repo.modified = date
        return commit

    def merge(self, repo: Repo, pull: Discussion, author: str) -> Commit:
        """Bring a pull request's changes onto its base; both sides changing one path is a conflict."""
        base = repo.commits[pull.base_commit].files
        theirs = repo.commits[repo.refs[pull.ref]].files
        ours = repo.commits[repo.refs[pull.base]].files
        conflicts = conflicting(base, ours, theirs)
        if conflicts:
            raise Refusal(409, f"Merge conflict in {', '.join(conflicts)}")
        merged = dict(ours)
        for path in changed(base, theirs):
            if path in theirs:
                merged[path] = theirs[path]
            else:
                merged.pop(path, None)
        title = f"{pull.title} (#{pull.num})"
        commit = self.advance(repo, pull.base, merged, title, "", author, also=(repo.refs[pull.ref],))
        pull.status = "merged"
        pull.merge_commit = commit.id
        return commit


def changed(old: Mapping[str, Entry], new: Mapping[str, Entry]) -> list[str]:
    return sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))


def conflicting(base: Mapping[str, Entry], ours: Mapping[str, Entry], theirs: Mapping[str, Entry]) -> list[str]:
    both = set(changed(base, ours)) & set(changed(base, theirs))
    return sorted(path for path in both if ours.get(path) != theirs.get(path))


def remove(files: dict[str, Entry], path: str, *, folder: bool) -> None:
    """Take a file, or everything under a folder, out of a tree."""
    if not folder and path in files:
        del files[path]
        return
    inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
    if not inside:
        raise no_entry(path, message="A file with this name doesn't exist")
    for name in inside:
        del files[name]


def _attributes(text: str) -> list[tuple[re.Pattern[str], bool, bool]]:
    """(pattern, whether it is of whole paths, whether it means LFS) of every line, in order."""
    rules = [line.split() for line in text.splitlines() if line.strip()]
    return [
        (re.compile(fnmatch.translate(pattern)), "/" in pattern, "filter=lfs" in attributes)
        for pattern, *attributes in rules
    ]


def _lfs_attribute(rules: list[tuple[re.Pattern[str], bool, bool]], path: str) -> bool:
    verdict = False
    for pattern, whole, large in rules:
        if pattern.match(path if whole else path.rsplit("/", 1)[-1]):
            verdict = large
    return verdict
