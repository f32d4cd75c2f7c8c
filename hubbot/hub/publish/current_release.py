"""What target repos hold already: their record, their card, and the pull request that waits in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from hubbot.domain import Record
from hubbot.errors import BadRecord
from hubbot.hub.client import Hub
from hubbot.hub.failures import translated_hub_errors
from hubbot.hub.publish.pull_requests import Pulls
from hubbot.hub.publish.repo_release import RepoRelease
from hubbot.hub.publish.target import Target
from hubbot.hub.read.reader import Reader
from hubbot.hub.read.shapes import mapping
from hubbot.record.file import FILE_NAME, from_json

__all__ = ["CurrentRelease", "head_of_main", "read_current", "read_record", "read_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentRelease:
    """A target repo before publishing: what a new card is merged into and compared with."""

    revision: str  # that was read: main, or refs/pr/N of the pull request of ours that waits
    card: str | None  # README.md
    record: Record | None


def head_of_main(repo_id: str, hub: Hub) -> str | None:
    """The commit that a repo's main shows now; None where the Hub names none."""
    sha = mapping(Reader(hub).get(f"/api/models/{repo_id}").body).get("sha")
    return sha if isinstance(sha, str) and re.fullmatch(r"[0-9a-f]{40}", sha) else None


def read_current(repo_id: str, hub: Hub, *, mode: str) -> CurrentRelease | None:
    """The card and the record that a release of this repo would replace; None where there is no such repo.

    mode pr: those of our own waiting pull request, if there is one, so that what a maintainer wrote there stays.
    """
    with translated_hub_errors(repo_id, hub):
        if not hub.retry(lambda: hub.api.repo_exists(repo_id)):
            return None
        revision = "main"
        if mode == "pr" and hub.token:
            pull = Pulls(Target(RepoRelease(repo_id=repo_id, branches={}, title=""), hub)).latest()
            if pull and pull.status in ("draft", "open"):
                revision = pull.ref
        card = read_text(repo_id, "README.md", hub, revision=revision)
        return CurrentRelease(revision=revision, card=card, record=read_record(repo_id, hub, revision=revision))


def read_record(repo_id: str, hub: Hub, *, revision: str = "main") -> Record | None:
    """The hubbot.json of a repo's revision; None where there is none that can be read."""
    text = read_text(repo_id, FILE_NAME, hub, revision=revision)
    try:
        return None if text is None else from_json(text, origin=f"{repo_id}/{FILE_NAME}")
    except BadRecord:
        return None


def read_text(repo_id: str, path: str, hub: Hub, *, revision: str = "main") -> str | None:
    """A text file of a model repo; None where the repo, the revision or the file is missing."""
    found = Reader(hub).file(repo_id, quote(revision, safe=""), path)
    return None if found is None else found.decode("utf-8", "replace")
