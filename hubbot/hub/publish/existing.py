"""What target repos hold already: their record, their card, and the pull request that waits in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

from hubbot.domain import Record
from hubbot.errors import BadRecord
from hubbot.hub.access import Patience, hub_api, speaking_plainly
from hubbot.hub.publish.pulls import Pulls
from hubbot.hub.publish.release import Pace, RepoRelease
from hubbot.hub.publish.target import Target
from hubbot.hub.read.reader import ENDPOINT, Reader
from hubbot.record.file import FILE_NAME, from_json

__all__ = ["Existing", "read_existing", "read_record", "read_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Existing:
    """A target repo before publishing: what a new card is merged into and compared with."""

    revision: str  # that was read: main, or refs/pr/N of the pull request of ours that waits
    card: str | None  # README.md
    record: Record | None


def read_existing(
    repo_id: str, *, mode: str, token: str | None, endpoint: str | None = None, patience: Patience | None = None
) -> Existing | None:
    """The card and the record that a release of this repo would replace; None where there is no such repo.

    mode pr: those of our own waiting pull request, if there is one, so that what a maintainer wrote there stays.
    """
    patience = patience or Patience()
    with speaking_plainly(repo_id, token=token, endpoint=endpoint):
        if not patience.insist(lambda: hub_api(token, endpoint).repo_exists(repo_id)):
            return None
        revision = "main"
        if mode == "pr" and token:
            release = RepoRelease(repo_id=repo_id, branches={}, title="")
            pull = Pulls(Target(release, token, endpoint, patience, Pace())).latest()
            if pull and pull.status in ("draft", "open"):
                revision = pull.ref
        read = partial(read_text, repo_id, revision=revision, token=token, endpoint=endpoint, patience=patience)
        return Existing(revision=revision, card=read("README.md"), record=_parsed(read(FILE_NAME), repo_id))


def read_record(
    repo_id: str,
    *,
    revision: str = "main",
    token: str | None = None,
    endpoint: str | None = None,
    patience: Patience | None = None,
) -> Record | None:
    """The hubbot.json of a repo's revision; None where there is none that can be read."""
    text = read_text(repo_id, FILE_NAME, revision=revision, token=token, endpoint=endpoint, patience=patience)
    return _parsed(text, repo_id)


def _parsed(text: str | None, repo_id: str) -> Record | None:
    try:
        return None if text is None else from_json(text, origin=f"{repo_id}/{FILE_NAME}")
    except BadRecord:
        return None


def read_text(
    repo_id: str,
    path: str,
    *,
    revision: str = "main",
    token: str | None = None,
    endpoint: str | None = None,
    patience: Patience | None = None,
) -> str | None:
    """A text file of a model repo; None where the repo, the revision or the file is missing."""
    patience = patience or Patience()
    reader = Reader(token=token, endpoint=endpoint or ENDPOINT, sleep=patience.sleep, chance=patience.chance)
    found = reader.file(repo_id, quote(revision, safe=""), path)
    return None if found is None else found.decode("utf-8", "replace")
