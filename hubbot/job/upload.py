"""From a judged record to the repos on the Hub: what goes where, under which title."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from hubbot import log
from hubbot.cards.card import CARDS, PICTURE, write_cards
from hubbot.cards.changes import changelog
from hubbot.cards.marks import merge, wrap
from hubbot.cards.summary import pull_request
from hubbot.domain import Record
from hubbot.hub.client import Hub
from hubbot.hub.publish.current_release import head_of_main, read_current, read_record
from hubbot.hub.publish.publication import publish
from hubbot.hub.publish.repo_release import Receipt, RepoRelease
from hubbot.record.file import FILE_NAME
from hubbot.release.licence_texts import kept_licences
from hubbot.release.repos import Repo, plan_repos, with_owner
from hubbot.settings import PublishSettings, Settings

__all__ = ["release", "repo_release"]


def release(record: Record, settings: Settings, hub: Hub, *, out: Path) -> dict[str, Receipt]:
    """Publish every repo of a record. Returns repo id -> receipt; raises what `publish` raises."""
    naming = _without_collision(record, settings.publish, hub)
    write_cards(record, naming, out)  # under the names of this publication, whatever the run was told
    receipts = {}
    mode: Literal["pr", "main"] = "main" if settings.publish.mode == "main" else "pr"
    for repo in plan_repos(record, naming):
        previous = _keep_what_people_wrote(record, repo, hub, out, mode=mode)
        wanted = repo_release(record, repo, settings, out, previous=previous)
        receipt = publish(wanted, hub, mode=mode, force=settings.force)
        log.say(f"{receipt.status}: {receipt.pull_request_url or receipt.url}")
        receipts[repo.repo_id] = receipt
    return receipts


def _without_collision(record: Record, publish: PublishSettings, hub: Hub) -> PublishSettings:
    """The names of the repos; with the model's owner in them where one of them holds a release of another model."""
    taken = [repo.repo_id for repo in plan_repos(record, publish) if _is_anothers(repo, record, hub)]
    if not taken:
        return publish
    log.warning(
        f"{', '.join(taken)} holds a release of another model; the repos of this one have its owner in their names."
    )
    return with_owner(publish)


def _is_anothers(repo: Repo, record: Record, hub: Hub) -> bool:
    if not hub.token or "/" not in repo.repo_id:
        return False
    there = read_record(repo.repo_id, hub)
    return (
        there is not None
        and None not in (there.source.repo, record.source.repo)
        and there.source.repo != record.source.repo
    )


def _keep_what_people_wrote(record: Record, repo: Repo, hub: Hub, out: Path, *, mode: str) -> Record | None:
    """Merge the card in `out` with the one that it would replace, and say there what changes.

    Returns the record on main, to compare with.
    """
    if not hub.token or "/" not in repo.repo_id:
        return None  # publish() says what is missing
    existing = read_current(repo.repo_id, hub, mode=mode)
    if existing is None:
        return None
    previous = existing.record if existing.revision == "main" else read_record(repo.repo_id, hub)
    card = out / CARDS / repo.name / "README.md"
    text = card.read_text(encoding="utf-8") + _changed(previous, record, repo, hub)
    card.write_text(merge(existing.card, text), encoding="utf-8")
    return previous


def _changed(previous: Record | None, record: Record, repo: Repo, hub: Hub) -> str:
    """The card's section of changes against what main holds, which stays at its commit; nothing where there is none."""
    commit = head_of_main(repo.repo_id, hub) if previous else None
    if commit is None:
        return ""
    before = f"[{commit[:8]}]({hub.endpoint}/{repo.repo_id}/tree/{commit})"
    told = changelog(previous, record, repo.recommended.family, before=before)
    return f"\n{wrap({'changes': told})}" if told else ""


def repo_release(
    record: Record, repo: Repo, settings: Settings, out: Path, *, previous: Record | None = None
) -> RepoRelease:
    """Every revision of a repo with its files: the variants', the licence, the card, the picture and the record."""
    title, description = pull_request(record, repo, previous)
    branches: dict[str, dict[str, Path]] = {}
    for variant in repo.variants:
        files = {repo.place(variant, file): out / file.path for file in variant.files}
        branches.setdefault(repo.revision(variant), {}).update(files)
    shared = _shared(repo, out)
    return RepoRelease(
        repo_id=repo.repo_id,
        branches={_branch(name, settings): {**files, **shared} for name, files in branches.items()},
        title=title,
        description=description,
        private=settings.publish.visibility == "private",
        recorded={out / file.path: file.sha256 for variant in record.variants for file in variant.files},
        family=repo.recommended.family if repo.about.folder else None,
    )


def _branch(name: str, settings: Settings) -> str:
    """The branch itself, or where the release is to stand beside another one, a branch of its own."""
    beside = settings.publish.revision
    if beside is None:
        return name
    return beside if name == "main" else f"{name}-{beside}"


def _shared(repo: Repo, out: Path) -> Mapping[str, Path]:
    """What every revision holds: the source's licence texts go with each copy of the model."""
    cards = out / CARDS / repo.name
    files = {**kept_licences(out), "README.md": cards / "README.md", FILE_NAME: out / FILE_NAME}
    return files | ({PICTURE: cards / PICTURE} if (cards / PICTURE).exists() else {})
