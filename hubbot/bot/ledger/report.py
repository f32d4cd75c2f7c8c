"""What `hubbot status` and the metrics show."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hubbot.bot.ledger import events, jobs, mirror
from hubbot.bot.ledger.alive import lives
from hubbot.bot.ledger.rows import JobState
from hubbot.bot.ledger.store import Ledger


def job_counts(ledger: Ledger) -> dict[str, int]:
    rows = ledger.read("SELECT state, count(*) AS n FROM jobs GROUP BY state")
    found = {row["state"]: row["n"] for row in rows}
    return {str(state): found.get(str(state), 0) for state in JobState}


def attempt_seconds(ledger: Ledger) -> tuple[float, dict[str, int]]:
    """Seconds spent in all ended attempts, and their number by outcome."""
    seconds, counts = 0.0, {}
    for row in ledger.read(
        "SELECT outcome, count(*) AS n, total(seconds) AS s FROM attempts WHERE outcome IS NOT NULL GROUP BY outcome"
    ):
        seconds += row["s"]
        counts[row["outcome"]] = row["n"]
    return seconds, counts


def status(ledger: Ledger, *, history: int = 20) -> dict[str, Any]:
    """Everything that `hubbot status` shows, as JSON."""
    return {
        "state": str(ledger.path),
        "jobs": job_counts(ledger),
        "events": dict(events.counts(ledger)),
        "commits_last_hour": jobs.commits_within_hour(ledger),
        "running": [
            asdict(job) | {"alive": lives(ledger.path, job.worker)} for job in jobs.jobs(ledger, JobState.RUNNING)
        ],
        "queued": [asdict(job) for job in jobs.jobs(ledger, JobState.QUEUED)],
        "parked": [asdict(job) for job in jobs.jobs(ledger, JobState.PARKED)],
        "sources": [
            {"name": s.name, "polled": s.polled, "whole": s.whole, "error": s.error} for s in mirror.sources(ledger)
        ],
        "history": [
            dict(row)
            for row in ledger.read(
                "SELECT a.id, j.model, j.revision, a.worker, a.started, a.seconds, a.outcome, a.error_class, a.error "
                "FROM attempts a JOIN jobs j ON j.id = a.job WHERE a.outcome IS NOT NULL ORDER BY a.id DESC LIMIT ?",
                history,
            )
        ],
    }
