"""The state file keeps what it is told, once, whatever happens to processes, clocks and disks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from hubbot.bot.ledger import events, jobs, mirror
from hubbot.bot.ledger.alive import lives, worker
from hubbot.bot.ledger.events import Event
from hubbot.bot.ledger.report import status
from hubbot.bot.ledger.rows import JobState
from hubbot.bot.ledger.schema import MIGRATIONS
from hubbot.bot.ledger.store import Ledger, open_ledger
from hubbot.bot.watch_view import status_tables
from hubbot.errors import HubFailed, LedgerFailed
from hubbot.hub.seen import Contents, Release
from tests.bot.parts import Clock, enqueue, run_verdict, seen


def test_a_fresh_state_file_has_all_migrations_and_a_second_opening_changes_nothing(tmp_path):
    path = tmp_path / "state.sqlite"
    for _ in range(2):
        with open_ledger(path) as ledger:
            assert next(iter(ledger.read("PRAGMA user_version")))[0] == len(MIGRATIONS)
            assert next(iter(ledger.read("PRAGMA journal_mode")))[0] == "wal"
    strict = sqlite3.connect(path).execute("SELECT name FROM pragma_table_list WHERE NOT strict AND schema = 'main'")
    assert {row[0] for row in strict} <= {"sqlite_schema", "sqlite_sequence"}


def test_a_state_file_of_a_newer_hubbot_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "state.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 999")
    with pytest.raises(LedgerFailed, match="newer hubbot"), open_ledger(path):
        pass
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone()[0] == 999


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(LedgerFailed, match="no state file"), open_ledger(path):
        pass
    assert path.read_bytes().startswith(b"something else")


def _refused(path: Path, says: str) -> None:
    before = path.read_bytes()
    with pytest.raises(LedgerFailed, match=says), open_ledger(path):
        pass
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "s") as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    _refused(tmp_path / "s", "is a database of another program")


def test_a_state_file_that_lacks_a_table_is_refused_and_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "s") as db:
        db.executescript(f"{MIGRATIONS[0]} DROP TABLE commits; PRAGMA user_version = 1")
    db.close()
    _refused(tmp_path / "s", "lacks the table commits")


@pytest.mark.parametrize("wal", [False, True])
def test_a_damaged_state_file_is_refused_before_anything_is_written_to_it(tmp_path, wal):
    path = tmp_path / "s"
    with open_ledger(path) as ledger:
        mirror.store_page(ledger, mirror.SourceState(name="author:a"), [seen(f"a/m{n:04}") for n in range(400)])
    if not wal:
        db = sqlite3.connect(path)
        db.execute("PRAGMA journal_mode = DELETE")
        db.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:40_960] + b"\xa5" * 8_192 + whole[49_152:])
    _refused(path, "damaged|malformed")


def _read_all(ledger: Ledger) -> None:
    list(mirror.candidates(ledger, ["author:a"]))
    mirror.contents(ledger, "a/m", "s")
    mirror.releases(ledger, "a/m")
    jobs.last_job(ledger, "a/m")


DAMAGE = {
    "a model that is no JSON": ("UPDATE models SET candidate = 'x{'", "row of 'a/m' in the table models is damaged"),
    "a model that is a list": ("UPDATE models SET candidate = '[1]'", "table models is damaged"),
    "a model without a name": ("UPDATE models SET candidate = '{}'", "table models is damaged"),
    "tags that are a number": ("UPDATE models SET candidate = json_set(candidate, '$.tags', 5)", "table models"),
    "files that are a list": ("UPDATE contents SET files = '[]'", "row of 'a/m' in the table contents is damaged"),
    "a release of numbers": (
        "UPDATE releases SET release = '[1, 2]'",
        "row of 'us/m' in the table releases is damaged",
    ),
    "a state that is none": ("UPDATE jobs SET state = 'odd'", "row of 'a/m' in the table jobs is damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_row_is_told_by_its_table_and_name(tmp_path, case):
    statement, says = DAMAGE[case]
    with open_ledger(tmp_path / "s") as ledger:
        mirror.store_page(ledger, mirror.SourceState(name="author:a"), [seen("a/m")])
        mirror.store_contents(ledger, Contents(model="a/m", sha="s", files={"a": "b"}))
        mirror.store_release(ledger, _release())
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        ledger.connection.execute("PRAGMA ignore_check_constraints = ON")
        ledger.connection.execute(statement)
        with pytest.raises(LedgerFailed, match=says):
            _read_all(ledger)


def test_a_running_job_without_worker_or_attempt_is_taken_back_and_no_other_file_is_touched(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        for name in (None, "../precious"):
            (tmp_path / "precious").write_text("mine")
            enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
            ledger.connection.execute("UPDATE jobs SET state = 'running', worker = ?", (name,))
            again = jobs.claim(ledger, me)
            assert again is not None
            assert jobs.finish(ledger, again, seconds=1)
            assert (tmp_path / "precious").read_text() == "mine"
            ledger.connection.execute("DELETE FROM attempts")
            ledger.connection.execute("DELETE FROM jobs")


def test_odd_numbers_in_a_state_file_are_shown_and_not_counted_out(tmp_path):
    with open_ledger(tmp_path / "s") as ledger:
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        jobs.record_commits(ledger, "us/m", 10**15)
        ledger.connection.execute("UPDATE jobs SET due = 1e300")
        assert len(jobs.commit_times(ledger)) == 1000
        console = Console(record=True, width=100)
        console.print(*status_tables(status(ledger)))
        assert "1e+300" in console.export_text()


def _release() -> Release:
    return Release(repo="us/m", sha="s", model="a/m", revision="r", files={"a": "b"}, settings="s", version="1")


def test_asking_twice_for_a_job_queues_it_once(tmp_path):
    with open_ledger(tmp_path / "s") as ledger:
        first = enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        assert first is not None
        assert enqueue(ledger, run_verdict("a/m"), settings="s", version="1") is None
        assert [row.id for row in jobs.jobs(ledger, JobState.QUEUED)] == [first]


def test_a_newer_revision_replaces_the_waiting_job_and_waits_behind_the_running_one(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("a/m", "1" * 40), settings="s", version="1")
        enqueue(ledger, run_verdict("a/m", "2" * 40), settings="s", version="1")
        assert [row.revision for row in jobs.jobs(ledger, JobState.QUEUED)] == ["2" * 40]
        running = jobs.claim(ledger, me)
        assert running is not None
        enqueue(ledger, run_verdict("a/m", "3" * 40), settings="s", version="1")
        assert jobs.claim(ledger, me) is None, "two jobs of one model at the same time"
        jobs.finish(ledger, running, seconds=1)
        following = jobs.claim(ledger, me)
        assert following is not None
        assert following.row.revision == "3" * 40


def test_a_failing_job_waits_1_6_and_24_hours_and_is_parked_then(tmp_path):
    clock = Clock()
    with open_ledger(tmp_path / "s", clock=clock) as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        for hours in (1, 6, 24):
            claim = jobs.claim(ledger, me)
            jobs.fail(ledger, claim, HubFailed("down"), seconds=1)
            clock.advance(hours * 3600 - 1)
            assert jobs.claim(ledger, me) is None, f"tried again before {hours} h were over"
            clock.advance(2)
        claim = jobs.claim(ledger, me)
        jobs.fail(ledger, claim, HubFailed("down"), seconds=1)
        clock.advance(10**7)
        assert jobs.claim(ledger, me) is None
        job = jobs.last_job(ledger, "a/m")
        assert (job.state, job.failures, job.error) == (JobState.PARKED, 4, "down")
        assert jobs.retry(ledger, "a/m") == 1
        assert jobs.claim(ledger, me).row.failures == 0


def test_retry_of_an_unknown_model_changes_nothing(tmp_path):
    with open_ledger(tmp_path / "s") as ledger:
        assert jobs.retry(ledger, "a/none") == 0


def test_setting_the_clock_back_lengthens_no_wait(tmp_path):
    clock = Clock()
    with open_ledger(tmp_path / "s", clock=clock) as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        jobs.fail(ledger, jobs.claim(ledger, me), HubFailed("down"), seconds=1)
        clock.advance(-365 * 86400)
        assert jobs.claim(ledger, me) is None
        clock.advance(3601)
        assert jobs.claim(ledger, me) is not None, "an hour's wait became a year's"


def test_a_queued_job_is_claimed_although_the_clock_went_back(tmp_path):
    clock = Clock()
    with open_ledger(tmp_path / "s", clock=clock) as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        clock.advance(-86400)
        assert jobs.claim(ledger, me) is not None


def test_an_event_is_due_although_the_clock_went_back(tmp_path):
    clock = Clock()
    with open_ledger(tmp_path / "s", clock=clock) as ledger:
        events.accept(ledger, [Event(model="a/m", ref="refs/heads/main", old=None, sha="1" * 40)])
        clock.advance(-10 * 86400)
        assert len(events.waiting(ledger)) == 1


def test_the_hours_commits_are_a_budget_also_after_the_clock_went_back(tmp_path):
    clock = Clock()
    with open_ledger(tmp_path / "s", clock=clock) as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        jobs.record_commits(ledger, "a/m-GGUF", 3)
        assert jobs.claim(ledger, me, commits_per_hour=3) is None
        clock.advance(-1800)
        assert jobs.claim(ledger, me, commits_per_hour=3) is None
        clock.advance(1800 + 3601)
        assert jobs.claim(ledger, me, commits_per_hour=3) is not None


def test_a_job_of_a_living_worker_is_left_to_it(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as one, worker(ledger.path) as two:
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        assert jobs.claim(ledger, one) is not None
        assert jobs.claim(ledger, two) is None
        assert lives(ledger.path, one)
        assert lives(ledger.path, two)


_CLAIM_AND_HANG = """
import sys, time
from pathlib import Path
from hubbot.bot.ledger import jobs
from hubbot.bot.ledger.alive import worker
from hubbot.bot.ledger.store import Ledger, open_ledger
with open_ledger(Path(sys.argv[1])) as ledger, worker(ledger.path) as me:
    assert jobs.claim(ledger, me)
    print("claimed", flush=True)
    time.sleep(600)
"""


def _claim_in_a_process_and_kill_it(path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", _CLAIM_AND_HANG, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "claimed\n"
    child.send_signal(signal.SIGKILL)
    child.wait()


def test_a_killed_workers_job_is_taken_at_once_and_its_late_word_counts_no_more(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        _claim_in_a_process_and_kill_it(ledger.path)
        dead = next(iter(jobs.jobs(ledger, JobState.RUNNING))).worker
        claim = jobs.claim(ledger, me)
        assert claim is not None
        assert claim.row.failures == 0
        late = jobs.Claim(job=claim.job, attempt=claim.attempt - 1, worker=dead, row=claim.row)
        assert not jobs.finish(ledger, late, seconds=1)
        assert jobs.last_job(ledger, "a/m").state is JobState.RUNNING
        assert [row["outcome"] for row in ledger.read("SELECT outcome FROM attempts ORDER BY id")] == ["lost", None]


def test_a_job_that_kills_three_workers_in_a_row_has_failed(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        for _ in range(3):
            _claim_in_a_process_and_kill_it(ledger.path)
        assert jobs.claim(ledger, me) is None
        job = jobs.last_job(ledger, "a/m")
        assert job.failures == 1
        assert "died" in job.error


def _race(path: str, count: int, results: multiprocessing.Queue) -> None:
    mine = []
    with open_ledger(Path(path)) as ledger, worker(ledger.path) as me:
        while claim := jobs.claim(ledger, me):
            mine.append(claim.row.model)
            jobs.finish(ledger, claim, seconds=0)
    results.put(mine)


def test_two_bots_on_one_state_file_do_every_job_once(tmp_path):
    path = tmp_path / "s"
    with open_ledger(path) as ledger:
        for number in range(60):
            enqueue(ledger, run_verdict(f"a/m{number}"), settings="s", version="1")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    bots = [context.Process(target=_race, args=(str(path), 60, results)) for _ in range(2)]
    for bot in bots:
        bot.start()
    taken = [results.get(timeout=60) for _ in bots]
    for bot in bots:
        bot.join()
    assert sorted(taken[0] + taken[1]) == sorted(f"a/m{number}" for number in range(60))


def test_a_repeated_delivery_is_counted_and_not_news(tmp_path):
    clock = Clock()
    event = Event(model="a/m", ref="refs/heads/main", old="1" * 40, sha="2" * 40)
    with open_ledger(tmp_path / "s", clock=clock) as ledger:
        assert events.accept(ledger, [event, event]) == [True, False]
        clock.advance(60)
        assert events.accept(ledger, [event]) == [False]
        assert len(events.waiting(ledger)) == 1
        events.delivered(ledger, events.waiting(ledger)["a/m"])
        assert events.accept(ledger, [event]) == [False]
        assert events.waiting(ledger) == {}
        clock.advance(2 * 86400)
        assert events.accept(ledger, [event]) == [True], "a branch that came back after a day is news"
        assert len(events.waiting(ledger)) == 1


def test_an_event_that_cannot_be_delivered_waits_longer_each_time_and_is_given_up(tmp_path):
    clock = Clock()
    with open_ledger(tmp_path / "s", clock=clock) as ledger:
        events.accept(ledger, [Event(model="a/m", ref="refs/heads/main", old=None, sha="2" * 40)])
        tries = 0
        for _ in range(20):
            for group in events.waiting(ledger).values():
                tries += 1
                events.undelivered(ledger, group, HubFailed("down"))
            clock.advance(86400)
        assert tries == 7
        assert dict(events.counts(ledger)) == {"given up": 1}


def test_settled_events_are_forgotten_after_a_month_and_open_ones_never(tmp_path):
    clock = Clock()
    with open_ledger(tmp_path / "s", clock=clock) as ledger:
        events.accept(ledger, [Event(model=f"a/m{n}", ref="refs/heads/main", old=None, sha="2" * 40) for n in range(2)])
        events.delivered(ledger, events.waiting(ledger)["a/m0"])
        clock.advance(31 * 86400)
        events.prune(ledger)
        assert dict(events.counts(ledger)) == {"accepted": 1}


def test_errors_are_written_down_without_tokens(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        claim = jobs.claim(ledger, me)
        error = HubFailed("no good: Bearer hf_abcdefghijklmnop and sesame-open")
        jobs.fail(ledger, claim, error, seconds=1, secrets=["sesame-open"])
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"no good" in content
    assert b"abcdefghijklmnop" not in content
    assert b"sesame" not in content


def test_a_yanked_model_is_dropped_from_the_queue(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        mirror.store_yank(ledger, "a/m", "wrong weights")
        assert jobs.claim(ledger, me) is None
        assert mirror.yanked(ledger, "a/m") == "wrong weights"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs takes root")
def test_a_full_disk_is_said_loses_nothing_and_the_next_try_goes_on(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        stored, said = 0, ""
        with open_ledger(disk / "s") as ledger:
            ballast = disk / "ballast"
            while not said and stored < 10_000:
                try:
                    enqueue(ledger, run_verdict(f"a/model-{stored}"), settings="s" * 64, version="1")
                except LedgerFailed as error:
                    said = str(error)
                else:
                    stored += 1
                if stored == 50:
                    left = os.statvfs(disk)
                    ballast.write_bytes(b"\0" * (left.f_bavail * left.f_frsize - 20_000))
            assert "free some space" in said
            assert stored >= 50
            ballast.unlink()
            enqueue(ledger, run_verdict("a/after"), settings="s", version="1")
        with open_ledger(disk / "s") as ledger:
            assert next(iter(ledger.read("PRAGMA integrity_check")))[0] == "ok"
            assert sum(1 for _ in jobs.jobs(ledger, JobState.QUEUED, limit=20_000)) == stored + 1
    finally:
        subprocess.run(["umount", disk], check=True)


def _event(model: str, sha: str, ref: str = "refs/heads/main") -> Event:
    return Event(model=model, ref=ref, old=None, sha=sha * 40)


def test_an_older_event_does_not_go_out_while_a_newer_one_of_its_model_waits_for_another_try(tmp_path):
    clock = Clock()
    with open_ledger(tmp_path / "s", clock=clock) as ledger:
        events.accept(ledger, [_event("a/m", "2"), _event("a/m", "1"), _event("a/other", "3")])
        events.undelivered(ledger, events.waiting(ledger)["a/m"], HubFailed("down"))
        assert list(events.waiting(ledger)) == ["a/other"]
        clock.advance(11)
        assert [accepted.event.sha for accepted in events.waiting(ledger)["a/m"]] == ["2" * 40, "1" * 40]


def test_events_belong_to_who_hands_them_on(tmp_path):
    with open_ledger(tmp_path / "s") as ledger:
        events.accept(ledger, [_event("a/m", "1")], taker="github")
        assert events.waiting(ledger) == {}
        assert list(events.waiting(ledger, taker="github")) == ["a/m"]
        events.adopt(ledger, "queue")
        assert list(events.waiting(ledger)) == ["a/m"]


def test_who_reads_many_models_may_write_meanwhile_although_another_process_does(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, open_ledger(tmp_path / "s") as other:
        state = mirror.SourceState(name="author:a")
        mirror.store_page(ledger, state, [seen(f"a/m{number:04}") for number in range(1200)])
        read = []
        for number, found in enumerate(mirror.candidates(ledger, ["author:a"])):
            if number % 300 == 0:
                events.accept(other, [_event("a/m", f"{number:04}"[0])])
                enqueue(ledger, run_verdict(found.id), settings="s", version="1")
            read.append(found.id)
        assert read == [f"a/m{number:04}" for number in range(1200)]


def test_a_yanked_model_is_not_taken_up_whoever_queued_it(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        mirror.store_yank(ledger, "a/m", "wrong")
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")  # judged before it was yanked
        assert jobs.claim(ledger, me) is None
        mirror.forget_yank(ledger, "a/m")
        assert jobs.claim(ledger, me) is not None


def test_a_worker_that_does_one_job_at_a_time_takes_back_what_was_left_running_under_its_name(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        assert jobs.claim(ledger, me)
        assert jobs.claim(ledger, me) is None
        again = jobs.claim(ledger, me, one_by_one=True)
        assert again.row.model == "a/m"
        outcomes = [row["outcome"] for row in ledger.read("SELECT outcome FROM attempts ORDER BY id")]
        assert outcomes == ["lost", None]


def test_a_state_file_of_the_first_version_is_brought_up_to_date_and_keeps_its_events(tmp_path):
    path = tmp_path / "s"
    with sqlite3.connect(path) as db:
        db.executescript(MIGRATIONS[0])
        db.execute("PRAGMA user_version = 1")
        db.execute(
            "INSERT INTO events (key, model, ref, sha, received, state, due) VALUES ('k', 'a/m', 'r', 's', 0, 'accepted', 0)"
        )
    with open_ledger(path) as ledger:
        assert list(events.waiting(ledger)) == ["a/m"]


def test_only_jobs_that_are_over_for_good_are_settled(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        for name in ("parked", "waits", "done"):
            enqueue(ledger, run_verdict(f"a/{name}"), settings="s", version="1")
        jobs.fail(ledger, jobs.claim(ledger, me), HubFailed("down"), seconds=1, park=True)
        jobs.fail(ledger, jobs.claim(ledger, me), HubFailed("down"), seconds=1)
        jobs.finish(ledger, jobs.claim(ledger, me), seconds=1)
        assert jobs.settled(ledger) == {"a/parked"}
        mirror.store_yank(ledger, "a/waits", "wrong")
        assert jobs.settled(ledger) == {"a/parked", "a/waits"}
        jobs.retry(ledger, "a/parked")
        assert jobs.settled(ledger) == {"a/waits"}
