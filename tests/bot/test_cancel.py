"""A job that is cancelled or taken back by another process ends in its middle, not at its next commit."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from hubbot.bot.ledger import jobs, mirror
from hubbot.bot.ledger.alive import worker
from hubbot.bot.ledger.rows import JobState
from hubbot.bot.ledger.store import open_ledger
from hubbot.bot.stop import Stop, on_signals
from hubbot.bot.worker import Tally, Terms, work
from tests.bot.parts import enqueue, run_verdict


def cancelled(path):
    with open_ledger(path) as own:
        assert jobs.cancel(own, "a/m", by="somebody")


def yanked(path):
    with open_ledger(path) as own:
        mirror.store_yank(own, "a/m", "wrong weights")


@pytest.mark.parametrize("order", [cancelled, yanked])
def test_a_job_in_its_middle_ends_within_a_look_at_the_state_file_and_the_next_one_runs(tmp_path, monkeypatch, order):
    monkeypatch.setattr("hubbot.bot.worker.LOOK", 0.01)
    ran = []

    def run(job, commits):
        ran.append(job.model)
        if job.model == "a/m":
            threading.Thread(target=order, args=(tmp_path / "s",)).start()
            time.sleep(60)  # of a sweep that commits nothing
            pytest.fail("nobody ended it")

    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me, on_signals() as stop:
        for name in ("a/m", "a/other"):
            enqueue(ledger, run_verdict(name), settings="s", version="1")
        assert work(ledger, run, stop, Terms(worker=me)) == Tally(done=1, dropped=1)
        assert [job.model for job in jobs.jobs(ledger, JobState.DROPPED)] == ["a/m"]
    assert ran == ["a/m", "a/other"]


def test_a_cancelled_job_whose_worker_dies_does_not_come_back(tmp_path):
    with open_ledger(tmp_path / "s") as ledger:
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        with worker(ledger.path) as me:
            assert jobs.claim(ledger, me)
            assert jobs.cancel(ledger, "a/m", by="somebody")
        with worker(ledger.path) as other:
            assert jobs.claim(ledger, other) is None
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        with worker(ledger.path) as other:
            claim = jobs.claim(ledger, other)
            assert jobs.unwanted(ledger, claim) is None, "a new approval is of a new job"


def test_a_process_that_takes_no_such_signal_is_left_alone():
    before = signal.getsignal(signal.SIGUSR1)
    Stop().end_step(KeyError())
    assert signal.getsignal(signal.SIGUSR1) is before
