"""What we have published, read from the Hub: the hubbot.json of every repo in our namespace."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

from hubbot.bot.ledger import mirror
from hubbot.bot.ledger.store import Ledger
from hubbot.bot.poll import HOUR, author_source, poll_list
from hubbot.bot.watch import OUR_TAG
from hubbot.errors import BadRecord
from hubbot.formats import FAMILIES
from hubbot.formats.names import find_variant
from hubbot.hub.read import listing
from hubbot.hub.read.reader import Reader
from hubbot.hub.seen import Candidate, Release
from hubbot.record.file import from_json

YANKED_TAG = "yanked"


def source_name(namespace: str) -> str:
    return f"published:{namespace}"


def poll_releases(
    reader: Reader,
    ledger: Ledger,
    namespace: str,
    *,
    refresh_hours: int,
    finish: Callable[[str], bool] = lambda _: True,
) -> None:
    """Bring the releases in the state file up to date: one request where nothing changed, one more for each repo that did.

    finish: called for a repo whose main changed and whose release has further branches; where it returns False the
    repo is read again the next time.
    Raises HubFailed: who does not know what is published must not publish.
    """
    source = author_source(namespace, name=source_name(namespace))
    poll_list(reader, ledger, source, refresh_hours * HOUR)
    read = mirror.release_shas(ledger)
    shown = {found.id: found for found in mirror.candidates(ledger, [source.name]) if may_be_ours(found)}
    for repo in read.keys() - shown.keys():
        mirror.forget_release(ledger, repo)
    for repo, found in shown.items():
        if read.get(repo) != found.sha:
            release = read_release(reader, found)
            unfinished = has_branches(release) and not finish(repo)
            mirror.store_release(ledger, replace(release, sha="") if unfinished else release)


def has_branches(release: Release) -> bool:
    """Whether variants of it stand on branches beside main: all checkpoints but the first of a repo do."""
    variants = (find_variant(name) for name in release.variants)
    return sum(variant is not None and FAMILIES[variant.family].ABOUT.folder for variant in variants) > 1


def may_be_ours(found: Candidate) -> bool:
    return OUR_TAG in found.tags or found.relation == "quantized" or any("quantized:" in tag for tag in found.tags)


def read_release(reader: Reader, found: Candidate) -> Release:
    """A repo as its hubbot.json tells; without a source where it has none that can be read, so it is nobody's release."""
    text = listing.read_record(reader, found.id, found.sha)
    nobody = Release(repo=found.id, sha=found.sha, model="", revision="", files={}, settings="", version="")
    if text is None:
        return nobody
    try:
        record = from_json(text)
    except BadRecord:
        return nobody
    return Release(
        repo=found.id,
        sha=found.sha,
        model=record.source.repo or "",
        revision=record.source.revision or "",
        files=record.source.files,
        settings=digest(record.config),
        version=record.hubbot.get("version") or "",
        variants={variant.name: str(variant.status) for variant in record.variants},
        weights=record.source.parameters,
        seconds=sum(record.timings.values()),
        machine=str(record.hardware.get("gpu") or record.hardware.get("cpu") or ""),
        yanked="yanked; its card says why" if YANKED_TAG in found.tags else None,
    )


def digest(config: object) -> str:
    """Fingerprint of the settings that shape a release: of `fingerprint.shaping` or a record's config."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
