"""Parts that several tests of the bot use."""

from __future__ import annotations

from dataclasses import dataclass

from hubbot.bot.ledger import jobs
from hubbot.bot.ledger.store import Ledger
from hubbot.bot.verdicts import Action, Verdict
from hubbot.hub.seen import Candidate


@dataclass
class Clock:
    """A clock that stands still until it is told to go, in either direction."""

    seconds: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


def run_verdict(model: str, revision: str = "1" * 40) -> Verdict:
    return Verdict(model=model, revision=revision, action=Action.RUN, rule="new", reason="not published yet")


def enqueue(ledger: Ledger, verdict: Verdict, *, settings: str, version: str) -> int | None:
    """One verdict queued; the job's id."""
    return jobs.enqueue_all(ledger, [verdict], settings=settings, version=version)[0]


def seen(model: str = "maker/model", **changes) -> Candidate:
    """A model that every rule would let pass."""
    values = {
        "id": model,
        "sha": "1" * 40,
        "modified": "2026-01-01T00:00:00.000Z",
        "created": "2026-01-01T00:00:00.000Z",
        "tags": ("transformers", "safetensors", "license:mit"),
        "library": "transformers",
        "architecture": "LlamaForCausalLM",
        "licence": "mit",
        "parameters": 1_000_000,
        "weight_bytes": 2_000_000,
    }
    return Candidate(**{**values, **changes})
