"""Due jobs leave the queue for GitHub's runners, as a job matrix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hubbot.bot.ledger import jobs
from hubbot.bot.ledger.jobs import Claim
from hubbot.bot.ledger.store import Ledger

__all__ = ["handing_over"]

LARGEST = 256  # jobs that GitHub takes in one matrix; the others are handed over by the next round


@contextmanager
def handing_over(ledger: Ledger, worker: str, *, limit: int = LARGEST) -> Iterator[dict[str, list[dict[str, str]]]]:
    """The due jobs as `{"include": [{"model", "revision"}, ...]}`, to be written out within the block.

    One that was asked for has its `variants` besides.

    They count as handed over when the block has ended, and wait again where it failed. From then on they are
    GitHub's: a run that fails is run again there, and `hubbot retry MODEL` hands a model over once more. A new
    commit, other settings or another version make a new job.
    worker: the name that `ledger.alive.worker` gave.
    """
    taken: list[Claim] = []
    try:
        while len(taken) < limit and (claim := jobs.claim(ledger, worker)):
            taken.append(claim)
        yield {"include": [_entry(claim) for claim in taken]}
    except BaseException:
        for claim in taken:
            jobs.requeue(ledger, claim, seconds=0.0)
        raise
    for claim in taken:
        jobs.finish(ledger, claim, seconds=0.0)


def _entry(claim: Claim) -> dict[str, str]:
    row = claim.row
    return {"model": row.model, "revision": row.revision} | ({"variants": row.variants} if row.variants else {})
