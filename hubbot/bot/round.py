"""One round of the bot: see what the Hub shows, judge every model, queue what is to be done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from hubbot.bot.poll import Poll, poll, source_names
from hubbot.bot.published import digest, poll_releases
from hubbot.bot.sightings import Action, Candidate, Contents, Known, Verdict
from hubbot.bot.watch import Policy, judge
from hubbot.cards.repos import target_repos
from hubbot.domain import Gguf, Status, Variant, VariantRecord, family_of
from hubbot.errors import HubbotError, HubFailed, SourceNotFound, TokenRefused
from hubbot.fingerprint import shaping
from hubbot.formats.names import parse_variants
from hubbot.gate import nominal_bits
from hubbot.hub import listing
from hubbot.hub.reader import Reader
from hubbot.ledger import events, jobs, mirror
from hubbot.ledger.mirror import SourceState
from hubbot.ledger.store import Ledger
from hubbot.planning import architectures
from hubbot.settings import Settings

_AT_ONCE = 500  # verdicts a transaction
WEBHOOK = "webhook"  # the source of models that somebody told us about


def look(reader: Reader, ledger: Ledger, settings: Settings) -> Poll:
    """Read everything that is watched into the state file; what is published first.

    Raises HubFailed where that is unknown, for nobody may publish then; TokenRefused.
    """
    before = reader.requests
    look_at_releases(reader, ledger, settings)
    found = poll(reader, ledger, settings.watch)
    failures = found.failures | take_events(reader, ledger)
    events.prune(ledger)
    return replace(found, requests=reader.requests - before, failures=failures)


def look_at_releases(reader: Reader, ledger: Ledger, settings: Settings) -> None:
    """Bring what we have published up to date. Raises HubFailed."""
    if settings.publish.namespace:
        poll_releases(reader, ledger, settings.publish.namespace, refresh_hours=settings.watch.refresh_hours)


def take_events(reader: Reader, ledger: Ledger) -> dict[str, str]:
    """Read the models that webhooks told of; each once, however many events it has."""
    failures: dict[str, str] = {}
    done: dict[str, bool] = {}
    for accepted in events.waiting(ledger):
        model = accepted.event.model
        if model in failures:
            continue
        try:
            if model not in done:
                _read_told(reader, ledger, model)
                done[model] = True
            events.delivered(ledger, [accepted.id])
        except TokenRefused:
            raise
        except HubFailed as error:
            failures[model] = str(error)
            events.undelivered(ledger, accepted, error, secrets=[reader.token or ""])
    return failures


def _read_told(reader: Reader, ledger: Ledger, model: str) -> None:
    try:
        found, _ = listing.read_model(reader, model)
    except SourceNotFound:  # deleted or hidden since; nothing is left to do about it
        return
    if found:
        mirror.store_page(ledger, SourceState(name=WEBHOOK, polled=ledger.now()), [found])


def verdicts(
    reader: Reader, ledger: Ledger, settings: Settings, *, version: str, only: frozenset[str] | None = None
) -> Iterator[Verdict]:
    """The verdict on every model that is watched, by name. only: these models alone."""
    policy = policy_of(settings, ours=mirror.our_repos(ledger), version=version)
    names = [*source_names(settings.watch), WEBHOOK]
    touched = mirror.touched(ledger)  # most models have neither releases nor jobs: no query for those
    for seen in mirror.candidates(ledger, names) if only is None else mirror.chosen(ledger, only):
        known = know(ledger, seen) if seen.id in touched else Known()
        yield decide(reader, ledger, seen, known, policy)


def decide(reader: Reader, ledger: Ledger, seen: Candidate, known: Known, policy: Policy) -> Verdict:
    """The verdict, after a look at the model's files where that is needed."""
    verdict = judge(seen, known, policy)
    if verdict.action is not Action.LOOK:
        return verdict
    old = next(release.revision for release in known.releases if release.revision != seen.sha)
    tags = policy.watch.updates == "tags"
    try:
        now = _contents(reader, ledger, seen.id, seen.sha, tags=tags)
        before = _contents(reader, ledger, seen.id, old, tags=False)
    except HubbotError as error:
        return replace(verdict, action=Action.WAIT, rule="unreadable", reason=str(error))
    return judge(seen, replace(known, contents=now, before=before), policy)


def know(ledger: Ledger, seen: Candidate) -> Known:
    return Known(
        releases=mirror.releases(ledger, seen.id),
        job=jobs.last_job(ledger, seen.id),
        yanked=mirror.yanked(ledger, seen.id),
    )


def _contents(reader: Reader, ledger: Ledger, model: str, sha: str, *, tags: bool) -> Contents:
    known = mirror.contents(ledger, model, sha)
    if known is None or (tags and not known.tagged):  # a tag may be set later
        known = listing.read_contents(reader, model, sha, tags=tags)
        mirror.store_contents(ledger, known)
    return known


def queue(ledger: Ledger, wanted: Iterator[Verdict], settings: Settings, *, version: str) -> Iterator[Verdict]:
    """Queue what the verdicts ask for, a few hundred at once; hands them on as they come."""
    fingerprint = settings_digest(settings)
    while some := list(islice(wanted, _AT_ONCE)):
        asked = [verdict for verdict in some if verdict.action is Action.RUN]
        if asked:
            jobs.enqueue_all(ledger, asked, settings=fingerprint, version=version)
        yield from some


def policy_of(settings: Settings, *, ours: frozenset[str], version: str) -> Policy:
    variants = parse_variants(settings.variants)
    gguf = any(isinstance(variant, Gguf) for variant in variants)
    return Policy(
        watch=settings.watch,
        settings=settings_digest(settings),
        version=version,
        bits={variant.name: _bits(variant) for variant in variants},
        targets=lambda model: target_repos(model, variants, settings.publish),
        ours=ours,
        transformers=architectures.known_to_transformers,
        converter=architectures.known_to_llama_cpp if gguf else lambda _: True,
        disk=settings.budget.disk,
        allow_unlicensed=settings.licence.allow_unlicensed,
    )


def settings_digest(settings: Settings) -> str:
    return digest(shaping(settings))


def _bits(variant: Variant) -> float:
    """Bits per weight by name, and a half for the scales: close enough to say what a model will cost."""
    return nominal_bits(VariantRecord(name=variant.name, family=family_of(variant), status=Status.PASSED)) + 0.5
