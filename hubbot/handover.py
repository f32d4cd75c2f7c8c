"""Due jobs leave the queue for GitHub's runners, as a job matrix."""

from __future__ import annotations

from hubbot.ledger import jobs
from hubbot.ledger.store import Ledger

__all__ = ["hand_over"]

LARGEST = 256  # jobs that GitHub takes in one matrix; the others are handed over by the next round


def hand_over(ledger: Ledger, worker: str, *, limit: int = LARGEST) -> dict[str, list[dict[str, str]]]:
    """The due jobs as `{"include": [{"model", "revision"}, ...]}`; each is handed over once.

    From here on they are GitHub's: a run that fails is run again there, and `hubbot retry MODEL` hands a
    model over once more. A new commit, other settings or another version make a new job.
    worker: the name that `ledger.alive.worker` gave.
    """
    taken: list[dict[str, str]] = []
    while len(taken) < limit and (claim := jobs.claim(ledger, worker)):
        taken.append({"model": claim.row.model, "revision": claim.row.revision})
        jobs.finish(ledger, claim, seconds=0.0)
    return {"include": taken}
