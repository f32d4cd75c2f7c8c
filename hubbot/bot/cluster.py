"""Jobs of the queue as tasks of a Ray cluster; the queue itself stays in the state file on the head.

A task asks for what the job needs: GPUs and memory. Ray is told not to retry, because the state file
does: a task whose worker or node dies waits again at once and goes to whichever node is alive; what it
had published is found published. A node takes its Hub token from its own environment (HF_TOKEN); no
token travels through Ray, whose task arguments and dashboard are open to the whole cluster.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from hubbot import errors
from hubbot.bot.ledger import jobs
from hubbot.bot.ledger.jobs import Claim
from hubbot.bot.ledger.store import Ledger
from hubbot.bot.stop import Stop, Stopped
from hubbot.bot.worker import Between, Tally, Terms, Unwanted, dropped, failed, finished, job_of, requeued
from hubbot.confine.walls import hide_memory
from hubbot.domain import Job, Record
from hubbot.errors import HubbotError, LedgerFailed, TokenRefused, ToolMissing
from hubbot.hub.client import Hub, hub_of_environment
from hubbot.hub.rate_limit import RateLimit
from hubbot.hub.read.download import Mismatch
from hubbot.hub.read.reader import Reader
from hubbot.log import say
from hubbot.settings import Settings

WAKE = 2.0  # seconds between looks at the tasks

Task: TypeAlias = Callable[[Job, RateLimit], Record]
"""What a node runs; pickled once, so a module's function or a partial of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a task asks Ray for."""

    gpus: float = 0.0
    memory: int | None = None  # bytes of RAM
    cpus: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A job that ended well, as it travels to the head, which keeps the count of commits."""

    commits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error of a task, as it travels: classes of errors are known on both sides, tracebacks are not needed."""

    classes: tuple[str, ...]  # the error's class and those that it is derived from
    message: str
    commits: int = 0  # that were made before
    token_works: bool = True  # the node's own, asked after a refusal

    def error(self) -> Exception:
        if Mismatch.__name__ in self.classes:
            return Mismatch(self.message)
        known = next((name for name in self.classes if name in errors.__all__), None)
        return HubbotError.named(known, self.message) if known else RuntimeError(self.message)


@dataclass(slots=True, kw_only=True)
class Cluster:
    """A connection to a Ray cluster."""

    task: Task
    resources: Callable[[Job, int], Resources]  # of a job, in a cluster with so many GPUs
    gpus: int
    parallel: int  # tasks under way at once
    token_works: Callable[[], bool] = lambda: True  # asked on the node whose token was refused
    _running: dict[Any, tuple[Claim, float]] = field(default_factory=dict)  # reference -> job, start (monotonic)

    def work(self, ledger: Ledger, stop: Stop, between: Between, *, terms: Terms) -> Tally:
        """Run every job that is due, as many at once as the cluster takes.

        Raises Stopped, TokenRefused where a node's token is worth nothing, ToolMissing where a node cannot run
        hubbot; the jobs under way wait again, as if untouched.
        """
        tally = Tally()
        try:
            while True:
                if between():
                    self._fill(ledger, stop, terms)
                if not self._running:
                    return tally
                tally += self._collect(ledger, stop, terms)
        except BaseException:
            self._abandon(ledger, terms)
            raise

    def _fill(self, ledger: Ledger, stop: Stop, terms: Terms) -> None:
        import ray

        while len(self._running) < self.parallel:
            if stop.asked:
                raise Stopped
            terms.endings.catch_up(ledger)
            claim = jobs.claim(ledger, terms.worker, commits_per_hour=terms.commits_per_hour)
            if claim is None:
                return
            job = job_of(claim)
            try:
                wanted = self.resources(job, self.gpus)
            except HubbotError as error:
                failed(ledger, claim, error, 0.0, terms)
                continue
            remote = ray.remote(_attempt).options(
                num_cpus=wanted.cpus,
                num_gpus=wanted.gpus,
                memory=wanted.memory,
                max_retries=0,
                name=f"hubbot {job.model}",
            )
            self._running[remote.remote(self.task, self.token_works, job)] = (claim, time.monotonic())

    def _collect(self, ledger: Ledger, stop: Stop, terms: Terms) -> Tally:
        """Wait a little for tasks, and write down how those ended that did."""
        import ray

        with stop.breakable():
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=WAKE)
        tally = Tally()
        for reference in done:
            claim, started = self._running[reference]
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayTaskError as error:  # errors of a job come back as values: the node is at fault
                last = str(error).strip().splitlines()[-1]
                raise ToolMissing(_unfit_node(last)) from None
            except ray.exceptions.RayError as error:
                del self._running[reference]
                say(f"{claim.row.model}: its worker was lost ({type(error).__name__})")
                terms.endings.write(ledger, partial(jobs.lose, claim=claim))
                continue
            tally += settle(ledger, claim, outcome, time.monotonic() - started, terms)
            del self._running[reference]
        return tally + self._drop_unwanted(ledger, terms)

    def _drop_unwanted(self, ledger: Ledger, terms: Terms) -> Tally:
        """End the tasks of jobs that nobody wants any more: their nodes cannot see the state file."""
        import ray

        tally = Tally()
        for reference, (claim, started) in list(self._running.items()):
            if reason := jobs.unwanted(ledger, claim):
                ray.cancel(reference, force=True)
                del self._running[reference]
                error = Unwanted(f"{claim.row.model} was {reason} while its job ran.")
                tally += dropped(ledger, claim, error, time.monotonic() - started, terms)
        return tally

    def _abandon(self, ledger: Ledger, terms: Terms) -> None:
        """Stop the tasks under way; their jobs wait again, as if untouched."""
        import ray

        for reference, (claim, started) in self._running.items():
            ray.cancel(reference, force=True)
            with suppress(LedgerFailed):  # it stays among the endings to be written
                requeued(ledger, claim, time.monotonic() - started, terms)
        self._running.clear()


def settle(ledger: Ledger, claim: Claim, outcome: Done | Failure, seconds: float, terms: Terms) -> Tally:
    """Write down how a task ended that came back. Raises TokenRefused where its node's token is worth nothing."""
    if outcome.commits:
        note = partial(jobs.record_commits, repo=claim.row.model, count=outcome.commits)
        terms.endings.note(ledger, note)
    if isinstance(outcome, Done):
        return finished(ledger, claim, seconds, terms)
    error = outcome.error()
    if isinstance(error, TokenRefused) and not outcome.token_works:
        raise error  # no job is to blame, and every other one would fare the same on that node
    return failed(ledger, claim, error, seconds, terms)


def _unfit_node(last: str) -> str:
    return (
        f"A node of the cluster cannot run hubbot: {last[:300]} Every node needs the same version of it "
        "(`pip install 'hubbot[ray]'`); the job waits again."
    )


@contextmanager
def connected(
    address: str | None,
    task: Task,
    resources: Callable[[Job, int], Resources],
    *,
    parallel: int | None = None,
    token_works: Callable[[], bool] = lambda: True,
) -> Iterator[Cluster]:
    """A cluster at an address (`auto`, `host:port`, `ray://…`), or one of this machine's own.

    parallel: tasks at once; default: one for each GPU, or for each node of a cluster without any.
    Raises ToolMissing without Ray.
    """
    try:
        import ray
    except ImportError:
        raise ToolMissing("Ray is not installed. `pip install 'hubbot[ray]'`, or leave out --executor ray.") from None
    try:
        ray.init(address=address, configure_logging=False, include_dashboard=None if address else False)
    except Exception as error:  # Ray raises bare ones where its own processes do not come up
        where = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
        raise ToolMissing(
            f"No connection to {where}: {error} See `ray status` there, or leave out --executor ray."
        ) from error
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        nodes = sum(1 for node in ray.nodes() if node["Alive"])
        at_once = parallel or max(1, gpus or nodes)
        yield Cluster(task=task, resources=resources, gpus=gpus, parallel=at_once, token_works=token_works)
    finally:
        ray.shutdown()


@contextmanager
def cluster(settings: Settings, hub: Hub, *, address: str | None) -> Iterator[Callable[..., Tally]]:
    """The cluster that runs hubbot's pipeline, with the plan's figures as what a task asks for."""
    resources = partial(resources_of, settings=settings, hub=hub)
    task = partial(_pipeline, settings=settings, endpoint=hub.endpoint)
    with connected(address, task, resources, token_works=partial(_token_works, hub.endpoint)) as found:
        yield found.work


def resources_of(job: Job, gpus: int, *, settings: Settings, hub: Hub) -> Resources:
    """What to ask of a cluster with so many GPUs: memory as planned, and a GPU where the plan needs GPU memory.

    A job computes on one device at a time, so it never needs a second one.
    """
    from hubbot.bot.local import planned_resources

    need = planned_resources(job, settings, hub, gpu=gpus > 0)
    return Resources(gpus=1 if need["vram"] else 0, memory=need["ram"])


def _pipeline(job: Job, commits: RateLimit, *, settings: Settings, endpoint: str) -> Record:
    """On the node: the pipeline with the node's own token."""
    from hubbot.bot.local import run_job

    return run_job(job, commits, settings=settings, hub=hub_of_environment(endpoint=endpoint))


def _attempt(task: Task, token_works: Callable[[], bool], job: Job) -> Done | Failure:
    """On the node: errors come back as values, so that only lost and unfit nodes raise at the head."""
    hide_memory()
    commits = RateLimit(per_hour=sys.maxsize)  # the head keeps to the limit: it starts no job once that is spent
    try:
        task(job, commits)
    except Exception as error:  # noqa: BLE001 -- the boundary: it is raised again at the head
        classes = tuple(known.__name__ for known in type(error).__mro__)
        works = not isinstance(error, TokenRefused) or token_works()
        return Failure(classes=classes, message=str(error), commits=len(commits.spent), token_works=works)
    return Done(commits=len(commits.spent))


def _token_works(endpoint: str) -> bool:
    """On the node: whether the Hub knows its token."""
    return Reader(hub_of_environment(endpoint=endpoint)).token_works()
