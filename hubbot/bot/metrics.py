"""The bot's counters in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Mapping

from hubbot.bot.ledger import events, jobs, report
from hubbot.bot.ledger.store import Ledger


def exposition(ledger: Ledger, answers: Mapping[str, int], transactions: int) -> str:
    """answers: outcome of a delivery -> how many since the start; transactions: since the start."""
    seconds, attempts = report.attempt_seconds(ledger)
    return "".join(
        (
            _metric("hubbot_deliveries_total", "counter", "Webhook deliveries by answer.", "answer", answers),
            _metric("hubbot_transactions_total", "counter", "Durable writes of deliveries.", None, {"": transactions}),
            _metric("hubbot_events", "gauge", "Stored events by state.", "state", dict(events.counts(ledger))),
            _metric("hubbot_jobs", "gauge", "Jobs by state.", "state", report.job_counts(ledger)),
            _metric("hubbot_attempts_total", "counter", "Ended attempts by outcome.", "outcome", attempts),
            _metric("hubbot_attempt_seconds_total", "counter", "Time spent in attempts.", None, {"": seconds}),
            _metric(
                "hubbot_commits_last_hour", "gauge", "Commits to the Hub.", None, {"": jobs.commits_within_hour(ledger)}
            ),
        )
    )


def _metric(name: str, kind: str, text: str, label: str | None, values: Mapping[str, float]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for value, number in sorted(values.items()):
        labels = f'{{{label}="{value}"}}' if label else ""
        lines.append(f"{name}{labels} {number:g}")
    return "\n".join(lines) + "\n"
