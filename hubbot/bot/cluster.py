"""Jobs of the queue as tasks of a Ray cluster; the queue itself stays in the state file on the head.

A task asks for what the job needs: GPUs and memory. Ray is told not to retry, because the state file
does: a task whose worker or node dies waits again at once and goes to whichever node is alive; what it
had published is found published. A node takes its Hub token from its own environment (HF_TOKEN); no
token travels through Ray, whose task arguments and dashboard are open to the whole cluster.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from hubbot import errors
from hubbot.bot.stop import Stop, Stopped
from hubbot.bot.worker import Tally, Terms, failed, finished, job_of
from hubbot.domain import Job, Record
from hubbot.errors import HubbotError, ToolMissing
from hubbot.ledger import jobs
from hubbot.ledger.jobs import Claim
from hubbot.ledger.store import Ledger
from hubbot.log import say
from hubbot.settings import Settings

WAKE = 2.0  # seconds between looks at the tasks

Task: TypeAlias = Callable[[Job], Record]
"""What a node runs; pickled once, so a module's function or a partial of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a task asks Ray for."""

    gpus: float = 0.0
    memory: int | None = None  # bytes of RAM
    cpus: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error of a task, as it travels: classes of errors are known on both sides, tracebacks are not needed."""

    kind: str
    message: str

    def error(self) -> Exception:
        known = getattr(errors, self.kind, None) if self.kind in errors.__all__ else None
        return (known or RuntimeError)(self.message)


@dataclass(slots=True, kw_only=True)
class Cluster:
    """A connection to a Ray cluster."""

    task: Task
    needs: Callable[[Job, int], Needs]  # of a job, in a cluster with so many GPUs
    gpus: int
    parallel: int  # tasks under way at once
    _running: dict[Any, tuple[Claim, float]] = field(default_factory=dict)  # reference -> job, start (monotonic)

    def work(self, ledger: Ledger, stop: Stop, terms: Terms) -> Tally:
        """Run every job that is due, as many at once as the cluster takes. Raises Stopped."""
        tally = Tally()
        try:
            while True:
                self._fill(ledger, stop, terms)
                if not self._running:
                    return tally
                tally += self._collect(ledger, stop, terms)
        except Stopped:
            self._abandon(ledger)
            raise

    def _fill(self, ledger: Ledger, stop: Stop, terms: Terms) -> None:
        import ray

        while len(self._running) < self.parallel:
            if stop.asked:
                raise Stopped
            claim = jobs.claim(ledger, terms.worker, commits_per_hour=terms.commits_per_hour)
            if claim is None:
                return
            job = job_of(claim)
            try:
                needs = self.needs(job, self.gpus)
            except HubbotError as error:
                failed(ledger, claim, error, 0.0, terms)
                continue
            remote = ray.remote(_attempt).options(
                num_cpus=needs.cpus, num_gpus=needs.gpus, memory=needs.memory, max_retries=0, name=f"hubbot {job.model}"
            )
            self._running[remote.remote(self.task, job)] = (claim, time.monotonic())

    def _collect(self, ledger: Ledger, stop: Stop, terms: Terms) -> Tally:
        """Wait a little for tasks, and write down how those ended that did."""
        import ray

        with stop.breakable():
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=WAKE)
        tally = Tally()
        for reference in done:
            claim, started = self._running.pop(reference)
            seconds = time.monotonic() - started
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayError as error:
                say(f"{claim.row.model}: its worker was lost ({type(error).__name__})")
                jobs.lose(ledger, claim)
                continue
            if isinstance(outcome, Failure):
                tally += failed(ledger, claim, outcome.error(), seconds, terms)
            else:
                tally += finished(ledger, claim, outcome, seconds)
        return tally

    def _abandon(self, ledger: Ledger) -> None:
        """Stop the tasks under way; their jobs wait again, as if untouched."""
        import ray

        for reference, (claim, started) in self._running.items():
            ray.cancel(reference, force=True)
            jobs.give_back(ledger, claim, seconds=time.monotonic() - started)
        self._running.clear()


@contextmanager
def connected(
    address: str | None, task: Task, needs: Callable[[Job, int], Needs], *, parallel: int | None = None
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
        yield Cluster(task=task, needs=needs, gpus=gpus, parallel=parallel or max(1, gpus or nodes))
    finally:
        ray.shutdown()


@contextmanager
def cluster(
    settings: Settings, *, address: str | None, endpoint: str | None
) -> Iterator[Callable[[Ledger, Stop, Terms], Tally]]:
    """The cluster that runs hubbot's pipeline, with the plan's figures as what a task asks for."""
    from hubbot.bot.local import memory_of

    token = os.environ.get("HF_TOKEN")

    def needs(job: Job, gpus: int) -> Needs:
        memory = memory_of(job, settings, token=token, endpoint=endpoint)
        return Needs(gpus=1 if gpus and settings.device != "cpu" else 0, memory=memory)

    with connected(address, partial(_pipeline, settings=settings, endpoint=endpoint), needs) as found:
        yield found.work


def _pipeline(job: Job, settings: Settings, endpoint: str | None) -> Record:
    """On the node: the pipeline with the node's own token."""
    from hubbot.bot.local import run_job

    return run_job(job, settings, token=os.environ.get("HF_TOKEN"), endpoint=endpoint)


def _attempt(task: Task, job: Job) -> Record | Failure:
    """On the node: errors come back as values, so that only lost workers raise at the head."""
    try:
        return task(job)
    except Exception as error:  # noqa: BLE001 -- the boundary: it is raised again at the head
        return Failure(kind=type(error).__name__, message=str(error))
