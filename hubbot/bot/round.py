"""One round of the bot: see what the Hub shows, judge every model, queue what is to be done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from hubbot.bot.ledger import events, jobs, mirror
from hubbot.bot.ledger.mirror import SourceState
from hubbot.bot.ledger.store import Ledger
from hubbot.bot.poll import Poll, poll, source_names
from hubbot.bot.published import digest, poll_releases
from hubbot.bot.verdicts import Action, Known, Verdict
from hubbot.bot.watch import YANKED, Policy, judge
from hubbot.domain import Variant
from hubbot.errors import HubbotError, HubFailed, SourceNotFound, TokenRefused
from hubbot.formats import FAMILIES
from hubbot.formats.names import parse_wanted
from hubbot.hub.publish.after_merge import finish_merged
from hubbot.hub.rate_limit import RateLimit
from hubbot.hub.read import listing
from hubbot.hub.read.reader import Reader
from hubbot.hub.seen import Candidate, Contents
from hubbot.log import say
from hubbot.log.redact import redact
from hubbot.model import architectures
from hubbot.record.fingerprint import shaping
from hubbot.release.repos import target_repos, with_owner
from hubbot.settings import Settings

_AT_ONCE = 500  # verdicts a transaction
UNREADABLE = "unreadable"  # the rule where a look at the files failed
WEBHOOK = "webhook"  # the source of models that somebody told us about


def look(reader: Reader, ledger: Ledger, settings: Settings, *, finish: bool = True) -> Poll:
    """Read everything that is watched into the state file; what is published first.

    finish: make the branches of merged pull requests too. Raises HubFailed where it is unknown what is published, for
    nobody may publish then; TokenRefused.
    """
    before = reader.requests
    look_at_releases(reader, ledger, settings, finish=finish)
    found = poll(reader, ledger, settings.watch)
    failures = found.failures | take_events(reader, ledger)
    events.prune(ledger)
    return replace(found, requests=reader.requests - before, failures=failures)


def look_at_releases(reader: Reader, ledger: Ledger, settings: Settings, *, finish: bool = True) -> None:
    """Bring what we have published up to date. Raises HubFailed."""
    if not settings.publish.namespace:
        return
    merges = settings.publish.mode != "main"  # on GitHub the workflow says pr, and hubbot.toml nothing
    poll_releases(
        reader,
        ledger,
        settings.publish.namespace,
        refresh_hours=settings.watch.refresh_hours,
        finish=lambda repo: not merges or (finish and _finish(reader, ledger, settings, repo)),
    )


def _finish(reader: Reader, ledger: Ledger, settings: Settings, repo: str) -> bool:
    """Make the branches of a pull request that a maintainer has merged. Returns whether nothing is left to do."""
    if not reader.hub.token:
        return True
    commits = RateLimit(
        per_hour=settings.watch.commits_per_hour,
        spent=jobs.commit_times(ledger),
        clock=ledger.clock,
        sleep=reader.hub.retry.sleep,
        on_commit=lambda _: jobs.record_commits(ledger, repo, 1),
    )
    try:
        made = finish_merged(repo, replace(reader.hub, commits=commits))
    except HubbotError as error:
        say(redact(f"{repo}: the branches of its merged pull request could not be made: {error}", reader.hub.token))
        return False
    if made:
        say(f"{repo}: merged; its branches {', '.join(made)} are made")
    return True


def take_events(reader: Reader, ledger: Ledger) -> dict[str, str]:
    """Read the models that webhooks told of; each once, however many events it has."""
    failures: dict[str, str] = {}
    for model, group in events.waiting(ledger).items():
        try:
            _read_told(reader, ledger, model)
        except TokenRefused:
            raise
        except HubFailed as error:
            failures[model] = str(error)
            events.undelivered(ledger, group, error, secrets=[reader.hub.token or ""])
        else:
            events.delivered(ledger, group)
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
        return replace(verdict, action=Action.WAIT, rule=UNREADABLE, reason=str(error))
    if not now.files:
        gone = "the Hub does not show its files now"
        return replace(verdict, action=Action.WAIT, rule=UNREADABLE, reason=gone)
    return judge(seen, replace(known, contents=now, before=before), policy)


def judge_now(reader: Reader, ledger: Ledger, settings: Settings, model: str, *, version: str) -> Verdict | None:
    """The verdict on one model as the Hub shows it now; None where it is gone. Raises HubFailed."""
    try:
        seen, _ = listing.read_model(reader, model)
    except SourceNotFound:
        return None
    return judge_seen(reader, ledger, settings, seen, version=version) if seen else None


def judge_seen(
    reader: Reader, ledger: Ledger, settings: Settings, seen: Candidate, *, version: str, asked: str | None = None
) -> Verdict:
    """The verdict on a model that was just read, whether it is watched or not. Raises HubFailed.

    asked: the variants of a request, which then are the settings' too.
    """
    look_at_releases(reader, ledger, settings)
    policy = replace(policy_of(settings, ours=mirror.our_repos(ledger), version=version), asked=asked)
    return replace(decide(reader, ledger, seen, know(ledger, seen), policy), variants=asked)


def know(ledger: Ledger, seen: Candidate) -> Known:
    return Known(
        releases=mirror.releases(ledger, seen.id),
        job=jobs.last_job(ledger, seen.id),
        yanked=mirror.yanked(ledger, seen.id),
    )


def _contents(reader: Reader, ledger: Ledger, model: str, sha: str, *, tags: bool) -> Contents:
    known = mirror.contents(ledger, model, sha)
    if known is None or not known.files or (tags and not known.tagged):  # a tag may be set later
        known = listing.read_contents(reader, model, sha, tags=tags)
        if known.files:  # what is gone, or hidden for a moment, may be there again
            mirror.store_contents(ledger, known)
    return known


def queue(ledger: Ledger, wanted: Iterator[Verdict], settings: Settings, *, version: str) -> Iterator[Verdict]:
    """Queue what the verdicts ask for, a few hundred at once; hands them on as they come.

    What waits of a model that was yanked meanwhile, on whatever machine, is dropped.
    """
    fingerprint = settings_digest(settings)
    while some := list(islice(wanted, _AT_ONCE)):
        asked = [verdict for verdict in some if verdict.action is Action.RUN]
        if asked:
            jobs.enqueue_all(ledger, asked, settings=fingerprint, version=version)
        if gone := [verdict.model for verdict in some if verdict.rule == YANKED]:
            mirror.drop_waiting(ledger, gone)
        yield from some


def policy_of(settings: Settings, *, ours: frozenset[str], version: str) -> Policy:
    wanted = parse_wanted(settings.variants)
    variants = [one.variant for one in wanted]
    families = [FAMILIES[family] for family in {variant.family for variant in variants}]
    return Policy(
        watch=settings.watch,
        settings=settings_digest(settings),
        version=version,
        bits={variant.name: _bits(variant) for variant in variants},
        targets=lambda model: target_repos(model, variants, settings.publish),
        apart=lambda model: target_repos(model, variants, with_owner(settings.publish)),
        ours=ours,
        transformers=architectures.known_to_transformers,
        releases=architectures.read_from(),
        stand_ins={one.variant.name: frozenset(other.name for other in one.stand_ins) for one in reversed(wanted)},
        converter=lambda name: any(family.refusal(name) is None for family in families),
        disk=settings.budget.disk,
        ram=settings.budget.ram,
        vram=settings.budget.vram if settings.device != "cpu" else None,
        folders=max((_bits(variant) for variant in variants if FAMILIES[variant.family].ABOUT.folder), default=0.0),
        allow_unlicensed=settings.licence.allow_unlicensed,
    )


def settings_digest(settings: Settings) -> str:
    return digest(shaping(settings))


def _bits(variant: Variant) -> float:
    """Bits per weight by name, and a half for the scales: close enough to say what a model will cost."""
    return variant.bits + 0.5
