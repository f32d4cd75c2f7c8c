"""Runs what is queued: claim a job, run it, write down how it ended, take the next."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

from hubbot.bot.ledger import jobs
from hubbot.bot.ledger.jobs import DELAYS, Claim
from hubbot.bot.ledger.store import Ledger, open_ledger
from hubbot.bot.stop import Stop, Stopped
from hubbot.domain import Job, Record
from hubbot.errors import (
    BadRecord,
    BadSettings,
    HubbotError,
    LedgerFailed,
    SourceNotFound,
    SourceRefused,
    TokenRefused,
    Unsupported,
    VariantsRefused,
)
from hubbot.hub.rate_limit import RateLimit
from hubbot.hub.read.download import Mismatch
from hubbot.log import say
from hubbot.log.redact import redact
from hubbot.model.architectures import read_from

LOOK = 5.0  # seconds between looks at whether a job that runs is still wanted

RunJob: TypeAlias = Callable[[Job, RateLimit], Record]
"""Does a job from fetch to publish within a limit of commits, idempotently. Raises HubbotError."""

Between: TypeAlias = Callable[[], bool]
"""What is to be done between two jobs. Returns whether the next may begin."""

# The same source, settings and hubbot give the same refusal: no use in trying again.
_LASTING = (SourceRefused, Unsupported, VariantsRefused, BadSettings, BadRecord)
_MAY_PASS = (SourceNotFound, Mismatch)  # hidden for an hour, spoilt on the way


class Unwanted(HubbotError):
    """The job was cancelled, or its model taken back (`hubbot yank`), while it ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How the jobs of one working-off ended."""

    done: int = 0
    failed: int = 0
    dropped: int = 0  # taken back meanwhile

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            done=self.done + other.done, failed=self.failed + other.failed, dropped=self.dropped + other.dropped
        )


@dataclass(slots=True)
class Endings:
    """How jobs ended, where the state file could not be told at once: a full disk, another process that held it too long."""

    unwritten: list[Callable[[Ledger], object]] = field(default_factory=list)

    def write(self, ledger: Ledger, ending: Callable[[Ledger], object]) -> None:
        """Write an ending down; one that cannot be written stays for the next time. Raises LedgerFailed."""
        self.unwritten.append(ending)
        self.catch_up(ledger)

    def note(self, ledger: Ledger, what: Callable[[Ledger], object]) -> None:
        """The same for what is no reason to stop a job in its middle."""
        with suppress(LedgerFailed):
            self.write(ledger, what)

    def catch_up(self, ledger: Ledger) -> None:
        """Write what is left, the oldest first. Raises LedgerFailed."""
        while self.unwritten:
            self.unwritten[0](ledger)
            del self.unwritten[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a worker keeps to."""

    worker: str  # the name that `ledger.alive.worker` gave
    endings: Endings = field(default_factory=Endings)
    commits_per_hour: int | None = None
    delays: Sequence[float] = DELAYS  # seconds after each failure
    secrets: Sequence[str] = ()  # never to be written down, whatever they look like
    token_works: Callable[[], bool] = lambda: True  # asked after a refusal: is it the token, or this one repo?


def work(ledger: Ledger, run: RunJob, stop: Stop, terms: Terms, between: Between = lambda: True) -> Tally:
    """Run every job that is due, one after the other.

    Raises Stopped when a signal asks for it, TokenRefused when the token is worth nothing any more; the job
    it broke off waits again, as if untouched.
    """
    tally = Tally()
    while True:
        if stop.asked:
            raise Stopped
        terms.endings.catch_up(ledger)
        claim = jobs.claim(ledger, terms.worker, commits_per_hour=terms.commits_per_hour, one_by_one=True)
        if claim is None:
            return tally
        tally += work_on(ledger, claim, run, stop, terms)
        if not between():
            return tally


def work_on(ledger: Ledger, claim: Claim, run: RunJob, stop: Stop, terms: Terms) -> Tally:
    """Run one claimed job and write down how it ended."""
    started = time.monotonic()
    try:
        with stop.breakable(), ended_when_unwanted(ledger, claim, stop):
            run(job_of(claim), commits_of(ledger, claim, terms))
    except Stopped:
        requeued(ledger, claim, time.monotonic() - started, terms)
        raise
    except Unwanted as error:
        return dropped(ledger, claim, error, time.monotonic() - started, terms)
    except TokenRefused as error:
        if terms.token_works():
            return failed(ledger, claim, error, time.monotonic() - started, terms)
        requeued(ledger, claim, time.monotonic() - started, terms)
        raise  # no job is to blame, and every other one would fare the same
    except Exception as error:  # noqa: BLE001 -- one job's defect must not end the daemon
        return failed(ledger, claim, error, time.monotonic() - started, terms)
    return finished(ledger, claim, time.monotonic() - started, terms)


@contextmanager
def ended_when_unwanted(ledger: Ledger, claim: Claim, stop: Stop) -> Iterator[None]:
    """Break off what runs inside with Unwanted as soon as the state file says that nobody wants it any more.

    Whoever says so is another process: this one has its hands full.
    """
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK):
            with suppress(LedgerFailed), open_ledger(ledger.path, check=False) as own:
                if reason := jobs.unwanted(own, claim):
                    stop.end_step(Unwanted(f"{claim.row.model} was {reason} while its job ran."))
                    return

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def job_of(claim: Claim) -> Job:
    update: Literal["replace", "revision"] = "revision" if claim.row.update == "revision" else "replace"
    return Job(model=claim.row.model, revision=claim.row.revision, update=update, variants=claim.row.variants)


def commits_of(ledger: Ledger, claim: Claim, terms: Terms) -> RateLimit:
    """The limit of commits for one job: the state file's, which counts those of every bot. A yanked model gets none."""
    model = claim.row.model

    def allowed() -> None:
        if reason := jobs.unwanted(ledger, claim):
            raise Unwanted(f"{model} was {reason} while its job ran; nothing more of it is published.")
        if not terms.endings.unwritten:  # else the state file does not know of all
            commits.spent = jobs.commit_times(ledger)

    commits = RateLimit(
        per_hour=sys.maxsize if terms.commits_per_hour is None else terms.commits_per_hour,
        longest=jobs.HOUR,
        clock=ledger.clock,
        on_commit=lambda _: terms.endings.note(ledger, partial(jobs.record_commits, repo=model, count=1)),
        allowed=allowed,
    )
    return commits


def finished(ledger: Ledger, claim: Claim, seconds: float, terms: Terms) -> Tally:
    terms.endings.write(ledger, partial(jobs.finish, claim=claim, seconds=seconds))
    say(f"{claim.row.model}: done in {seconds:.0f} s")
    return Tally(done=1)


def failed(ledger: Ledger, claim: Claim, error: Exception, seconds: float, terms: Terms) -> Tally:
    if not isinstance(error, HubbotError):
        say(redact("".join(traceback.format_exception(error)), *terms.secrets))
    lasting = isinstance(error, _LASTING) and not isinstance(error, _MAY_PASS)
    ending = partial(
        jobs.fail,
        claim=claim,
        error=error,
        seconds=seconds,
        park=lasting,
        refused_by=read_from() if isinstance(error, Unsupported) else None,
        delays=terms.delays,
        secrets=terms.secrets,
    )
    say(f"{claim.row.model}: {redact(str(error), *terms.secrets)}")
    terms.endings.write(ledger, ending)
    return Tally(failed=1)


def requeued(ledger: Ledger, claim: Claim, seconds: float, terms: Terms) -> None:
    terms.endings.write(ledger, partial(jobs.requeue, claim=claim, seconds=seconds))


def dropped(ledger: Ledger, claim: Claim, error: Unwanted, seconds: float, terms: Terms) -> Tally:
    terms.endings.write(ledger, partial(jobs.drop, claim=claim, seconds=seconds))
    say(str(error))
    return Tally(dropped=1)
