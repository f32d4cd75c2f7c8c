"""Runs what is queued: claim a job, run it, write down how it ended, take the next."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hubbot.bot.stop import Stop, Stopped
from hubbot.domain import Family, Job, Record, Status
from hubbot.errors import (
    BadRecord,
    BadSettings,
    HubbotError,
    SourceNotFound,
    SourceRefused,
    TokenRefused,
    Unsupported,
    VariantsRefused,
)
from hubbot.hub.download import Mismatch
from hubbot.ledger import jobs
from hubbot.ledger.jobs import DELAYS, Claim
from hubbot.ledger.store import Ledger
from hubbot.log import say
from hubbot.mask import mask

Run: TypeAlias = Callable[[Job], Record]
"""Does a job from fetch to publish, idempotently. Raises HubbotError."""

# The same source, settings and hubbot give the same refusal: no use in trying again.
_LASTING = (SourceRefused, Unsupported, VariantsRefused, BadSettings, BadRecord)
_MAY_PASS = (SourceNotFound, Mismatch)  # hidden for an hour, spoilt on the way


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How the jobs of one working-off ended."""

    done: int = 0
    failed: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(done=self.done + other.done, failed=self.failed + other.failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a worker keeps to."""

    worker: str  # the name that `ledger.alive.worker` gave
    commits_per_hour: int | None = None
    delays: Sequence[float] = DELAYS  # seconds after each failure
    secrets: Sequence[str] = ()  # never to be written down, whatever they look like
    token_works: Callable[[], bool] = lambda: True  # asked after a refusal: is it the token, or this one repo?


def work(ledger: Ledger, run: Run, stop: Stop, terms: Terms) -> Tally:
    """Run every job that is due, one after the other.

    Raises Stopped when a signal asks for it, TokenRefused when the token is worth nothing any more; the job
    it broke off waits again, as if untouched.
    """
    tally = Tally()
    while True:
        if stop.asked:
            raise Stopped
        claim = jobs.claim(ledger, terms.worker, commits_per_hour=terms.commits_per_hour)
        if claim is None:
            return tally
        tally += work_on(ledger, claim, run, stop, terms)


def work_on(ledger: Ledger, claim: Claim, run: Run, stop: Stop, terms: Terms) -> Tally:
    """Run one claimed job and write down how it ended."""
    started = time.monotonic()
    try:
        with stop.breakable():
            record = run(job_of(claim))
    except Stopped:
        jobs.give_back(ledger, claim, seconds=time.monotonic() - started)
        raise
    except TokenRefused as error:
        if terms.token_works():
            return failed(ledger, claim, error, time.monotonic() - started, terms)
        jobs.give_back(ledger, claim, seconds=time.monotonic() - started)
        raise  # no job is to blame, and every other one would fare the same
    except Exception as error:  # noqa: BLE001 -- one job's defect must not end the daemon
        return failed(ledger, claim, error, time.monotonic() - started, terms)
    return finished(ledger, claim, record, time.monotonic() - started)


def job_of(claim: Claim) -> Job:
    update: Literal["replace", "revision"] = "revision" if claim.row.update == "revision" else "replace"
    return Job(model=claim.row.model, revision=claim.row.revision, update=update)


def finished(ledger: Ledger, claim: Claim, record: Record, seconds: float) -> Tally:
    jobs.finish(ledger, claim, seconds=seconds)
    if count := commits_of(record):
        jobs.record_commits(ledger, claim.row.model, count)
    say(f"{claim.row.model}: done in {seconds:.0f} s")
    return Tally(done=1)


def failed(ledger: Ledger, claim: Claim, error: Exception, seconds: float, terms: Terms) -> Tally:
    if not isinstance(error, HubbotError):
        say(mask("".join(traceback.format_exception(error)), *terms.secrets))
    lasting = isinstance(error, _LASTING) and not isinstance(error, _MAY_PASS)
    jobs.fail(ledger, claim, error, seconds=seconds, park=lasting, delays=terms.delays, secrets=terms.secrets)
    say(f"{claim.row.model}: {mask(str(error), *terms.secrets)}")
    return Tally(failed=1)


def commits_of(record: Record) -> int:
    """Commits that a published record took: one for all GGUF files, one for each other variant, one for a new repo."""
    published = [variant for variant in record.variants if variant.status is Status.PUBLISHED]
    gguf = any(variant.family is Family.GGUF for variant in published)
    return gguf + sum(variant.family is not Family.GGUF for variant in published) + len({v.family for v in published})
