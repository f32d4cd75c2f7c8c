"""The queue as GitHub's job matrix: every job once, and again only when a person or the source says so."""

from __future__ import annotations

import pytest

from hubbot.bot.ledger import jobs
from hubbot.bot.ledger.alive import worker
from hubbot.bot.ledger.rows import JobState
from hubbot.bot.ledger.store import Ledger, open_ledger
from hubbot.bot.matrix import handing_over
from tests.bot.parts import enqueue, run_verdict


def hand_over(ledger: Ledger, me: str, **options) -> dict[str, list[dict[str, str]]]:
    with handing_over(ledger, me, **options) as matrix:
        return matrix


def test_every_due_job_is_handed_over_once(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        for name in ("a/one", "a/two"):
            enqueue(ledger, run_verdict(name, "1" * 40), settings="s", version="1")
        expected = [{"model": name, "revision": "1" * 40} for name in ("a/one", "a/two")]
        assert hand_over(ledger, me) == {"include": expected}
        assert hand_over(ledger, me) == {"include": []}
        assert [row.model for row in jobs.jobs(ledger, JobState.DONE)]


def test_a_matrix_that_could_not_be_written_leaves_its_jobs_in_the_queue(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("a/one", "1" * 40), settings="s", version="1")
        with pytest.raises(BrokenPipeError), handing_over(ledger, me):
            raise BrokenPipeError
        assert [row.failures for row in jobs.jobs(ledger, JobState.QUEUED)] == [0]
        assert len(hand_over(ledger, me)["include"]) == 1


def test_a_retry_or_a_new_commit_is_handed_over_anew(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("a/one", "1" * 40), settings="s", version="1")
        hand_over(ledger, me)
        jobs.retry(ledger, "a/one")
        assert hand_over(ledger, me)["include"] == [{"model": "a/one", "revision": "1" * 40}]
        enqueue(ledger, run_verdict("a/one", "2" * 40), settings="s", version="1")
        assert hand_over(ledger, me)["include"] == [{"model": "a/one", "revision": "2" * 40}]


def test_what_does_not_fit_one_matrix_goes_into_the_next(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        for number in range(5):
            enqueue(ledger, run_verdict(f"a/m{number}"), settings="s", version="1")
        assert [len(hand_over(ledger, me, limit=3)["include"]) for _ in range(3)] == [3, 2, 0]
