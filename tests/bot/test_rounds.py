"""Whole rounds against the Hub server of the tests: look, judge, queue, work, look again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from hubbot import __version__
from hubbot.bot.daemon import Bot, keep_watching
from hubbot.bot.ledger import events, jobs
from hubbot.bot.ledger.alive import worker
from hubbot.bot.ledger.events import Event
from hubbot.bot.ledger.rows import JobState
from hubbot.bot.ledger.store import open_ledger
from hubbot.bot.local import folder_of, work_here
from hubbot.bot.stop import Stop
from hubbot.bot.worker import Tally, Terms, work
from hubbot.bot.yank import yank
from hubbot.errors import HubFailed, LedgerFailed, TokenRefused, Unsupported
from hubbot.hub.publish.publication import publish
from hubbot.hub.read.reader import Reader
from hubbot.hub.retry import Retry
from hubbot.model.architectures import read_from
from hubbot.settings import Settings
from tests.bot.cheap import cheap_run, files_of_a_model, settings_for
from tests.bot.parts import Clock
from tests.hub.models import gptq_release
from tests.hub.server import Hub


@dataclass
class Bench:
    """A bot in front of a Hub of its own."""

    hub: Hub
    bot: Bot
    clock: Clock
    worker: str
    slept: list[float]

    @property
    def settings(self) -> Settings:
        return self.bot.settings

    def rules(self) -> dict[str, str]:
        """Look, judge and queue; model -> rule."""
        self.bot.look()
        return {verdict.model: verdict.rule for verdict in self.bot.queue()}

    def work(self, **changes) -> Tally:
        run = partial(cheap_run, settings=self.settings, hub=self.bot.reader.hub)
        return work(self.bot.ledger, changes.get("run", run), Stop(), Terms(worker=self.worker))


@pytest.fixture
def bench(hub: Hub, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    token = hub.user("bot", orgs={"ours": "write"})
    watch = getattr(request, "param", {"authors": ["maker"]})
    settings = settings_for(tmp_path, **watch)
    clock, slept = Clock(), []
    with open_ledger(settings.watch.state, clock=clock) as ledger, worker(ledger.path) as name:
        reader = Reader(hub.seen(token, retry=Retry(sleep=slept.append)))
        yield Bench(hub, Bot(reader=reader, ledger=ledger, settings=settings, version=__version__), clock, name, slept)


def test_a_new_model_is_queued_made_published_and_then_known_as_done(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    assert bench.rules() == {"maker/one": "new"}
    assert bench.work() == Tally(done=1)
    assert {"ours/one-GGUF", "ours/one-GPTQ"} <= {name for _, name in bench.hub.store.repos}
    assert bench.rules() == {"maker/one": "published"}
    assert bench.work() == Tally()


def test_what_is_published_is_read_from_the_hub_and_not_from_the_state_file(bench, tmp_path):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()
    bench.work()
    with open_ledger(tmp_path / "another.sqlite") as fresh:
        other = Bot(reader=bench.bot.reader, ledger=fresh, settings=bench.settings, version=__version__)
        other.look()
        assert [(verdict.rule, verdict.action) for verdict in other.judge()] == [("published", "skip")]


def test_a_second_look_with_nothing_new_costs_one_request_a_source(bench):
    for number in range(30):
        bench.hub.model(f"maker/m{number}", files_of_a_model(number))
    bench.hub.page_size = 7
    bench.bot.look()
    before = bench.bot.reader.requests
    found = bench.bot.look()
    assert bench.bot.reader.requests - before == 2, "one for the author, one for our namespace"
    assert found.requests == 2
    assert len(list(bench.bot.judge())) == 30


def test_without_etags_a_second_look_reads_one_page_a_source(bench):
    for number in range(30):
        bench.hub.model(f"maker/m{number}", files_of_a_model(number))
    bench.hub.page_size = 7
    bench.bot.look()
    with bench.bot.ledger.transaction() as db:
        db.execute("UPDATE sources SET etag = NULL")
    assert bench.bot.look().requests == 2


def test_a_new_model_among_many_is_found_without_reading_all_again(bench):
    for number in range(30):
        bench.hub.model(f"maker/m{number}", files_of_a_model(number))
    bench.hub.page_size = 7
    bench.bot.look()
    bench.hub.model("maker/latest", files_of_a_model(99))
    before = bench.bot.reader.requests
    bench.bot.look()
    assert bench.bot.reader.requests - before <= 3
    assert "maker/latest" in {verdict.model for verdict in bench.bot.judge()}


def test_a_look_that_dies_half_way_goes_on_where_it_stopped(bench):
    for number in range(30):
        bench.hub.model(f"maker/m{number}", files_of_a_model(number))
    bench.hub.page_size = 7
    bench.hub.fail(r"GET /api/models\?.*cursor|GET /api/models\?.*(p|page|skip|offset)=", skip=1, times=8, status=500)
    with pytest.raises(HubFailed):
        bench.bot.look()
    bench.hub.heal()
    before = bench.bot.reader.requests
    bench.bot.look()
    assert bench.bot.reader.requests - before <= 5, "it read the first pages again"
    assert len(list(bench.bot.judge())) == 30


def test_a_readme_only_commit_is_not_new_and_changed_weights_are(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()
    bench.work()
    bench.hub.commit("maker/one", {"README.md": b"---\nlicense: mit\n---\nNew words.\n"})
    assert bench.rules() == {"maker/one": "readme-only"}
    bench.hub.commit("maker/one", {"model.safetensors": files_of_a_model(2)["model.safetensors"]})
    assert bench.rules() == {"maker/one": "changed"}
    assert bench.work() == Tally(done=1)
    assert bench.rules() == {"maker/one": "published"}


@pytest.mark.parametrize("bench", [{"authors": ["maker"], "on_update": "revision"}], indirect=True)
def test_on_update_revision_leaves_main_and_publishes_beside_it(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()
    bench.work()
    main = bench.hub.history("ours/one-GGUF")[0].id
    sha = bench.hub.commit("maker/one", {"model.safetensors": files_of_a_model(2)["model.safetensors"]})
    assert bench.rules() == {"maker/one": "changed"}
    assert bench.work() == Tally(done=1)
    assert bench.hub.history("ours/one-GGUF")[0].id == main
    beside = f"source-{sha[:8]}"
    record = json.loads(bench.hub.read("ours/one-GGUF", "hubbot.json", beside))
    assert record["source"]["revision"] == sha
    assert "model-Q8_0.gguf" in bench.hub.files("ours/one-GGUF", beside)
    assert bench.rules() == {"maker/one": "published"}


def test_our_own_releases_are_never_made_again_even_when_they_are_watched(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()
    bench.work()
    watch = bench.settings.watch.model_copy(update={"authors": ("maker", "ours")})
    both = Bot(
        reader=bench.bot.reader,
        ledger=bench.bot.ledger,
        settings=bench.settings.model_copy(update={"watch": watch}),
        version=__version__,
    )
    both.look()
    rules = {verdict.model: verdict.rule for verdict in both.judge()}
    assert rules == {"maker/one": "published", "ours/one-GGUF": "own-release", "ours/one-GPTQ": "own-release"}


def test_a_model_that_vanished_is_forgotten_when_its_source_is_read_whole_again(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.hub.model("maker/two", files_of_a_model(2))
    bench.bot.look()
    bench.hub.delete_repo("maker/one")
    bench.clock.advance(25 * 3600)
    bench.bot.look()
    assert [verdict.model for verdict in bench.bot.judge()] == ["maker/two"]


@pytest.mark.parametrize(
    "bench",
    [
        {
            "models": ["maker/one", "maker/none"],
            "collections": ["maker/best-1"],
            "searches": [{"tag": ["chess"], "limit": 5}],
        }
    ],
    indirect=True,
)
def test_models_collections_and_searches_are_sources_and_one_that_fails_stops_no_other(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.hub.model("other/two", files_of_a_model(2))
    card = b"---\nlicense: mit\ntags: [chess]\n---\n"
    bench.hub.model("third/three", {**files_of_a_model(3), "README.md": card})
    bench.hub.model("third/unseen", files_of_a_model(4))
    bench.hub.collection("maker/best-1", ["other/two"])
    found = bench.bot.look()
    assert list(found.failures) == ["model:maker/none"]
    assert {verdict.model for verdict in bench.bot.judge()} == {"maker/one", "other/two", "third/three"}
    before = bench.bot.reader.requests
    bench.bot.look()
    assert bench.bot.reader.requests - before <= 5


def test_the_rate_limits_wait_is_kept_with_a_jitter(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.hub.fail(r"author=maker", status=429, ratelimit=40)
    bench.hub.fail(r"author=ours", status=503, retry_after=20)
    assert bench.rules() == {"maker/one": "new"}
    assert any(41 <= wait <= 43 for wait in bench.slept)
    assert any(21 <= wait <= 23 for wait in bench.slept)


def test_a_429_without_a_word_is_tried_again_with_growing_pauses(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.hub.fail(r"author=maker", status=429, times=4)
    assert bench.rules() == {"maker/one": "new"}
    assert len(bench.slept) == 4
    assert bench.slept[3] > bench.slept[0]


def test_a_revoked_token_ends_the_round_at_once_and_nothing_is_queued(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.hub.revoke(bench.bot.reader.hub.token, after=1)
    with pytest.raises(TokenRefused) as refused:
        bench.bot.look()
    assert bench.bot.reader.hub.token not in str(refused.value)
    assert bench.bot.reader.requests <= 2
    assert list(jobs.jobs(bench.bot.ledger, *JobState)) == []


def test_a_token_revoked_in_the_middle_of_the_work_is_no_jobs_fault(bench):
    for number in range(5):
        bench.hub.model(f"maker/m{number}", files_of_a_model(number))
    bench.rules()
    bench.hub.revoke(bench.bot.reader.hub.token, after=25)
    run = partial(cheap_run, settings=bench.settings, hub=bench.bot.reader.hub)
    terms = Terms(worker=bench.worker, token_works=bench.bot.reader.token_works)
    with pytest.raises(TokenRefused):
        work(bench.bot.ledger, run, Stop(), terms)
    states = [(job.state, job.failures) for job in jobs.jobs(bench.bot.ledger, JobState.QUEUED, JobState.RUNNING)]
    assert states == [(JobState.QUEUED, 0)] * len(states)
    assert len(states) >= 3
    fresh = partial(run, hub=bench.hub.seen(bench.hub.user("bot", orgs={"ours": "write"})))
    assert work(bench.bot.ledger, fresh, Stop(), Terms(worker=bench.worker)).done == len(states)


def test_a_token_that_may_not_write_one_repo_is_that_jobs_failure(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.hub.model("maker/two", files_of_a_model(2))
    bench.rules()
    good = partial(cheap_run, settings=bench.settings, hub=bench.bot.reader.hub)

    def forbidden(job, commits):
        if job.model == "maker/one":
            raise TokenRefused("may not write here")
        return good(job, commits)

    terms = Terms(worker=bench.worker, token_works=bench.bot.reader.token_works)
    assert work(bench.bot.ledger, forbidden, Stop(), terms) == Tally(done=1, failed=1)


def test_who_cannot_see_what_is_published_queues_nothing(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.hub.fail(r"author=ours", status=500, times=None)
    with pytest.raises(HubFailed):
        bench.rules()
    assert list(jobs.jobs(bench.bot.ledger, *JobState)) == []


def test_repeated_and_out_of_order_events_do_one_job(bench):
    old = bench.hub.model("maker/one", files_of_a_model(1))
    new = bench.hub.commit("maker/one", {"model.safetensors": files_of_a_model(2)["model.safetensors"]})
    late = Event(model="maker/one", ref="refs/heads/main", old=None, sha=old)
    first = Event(model="maker/one", ref="refs/heads/main", old=old, sha=new)
    for found in (first, late, first, late):
        events.accept(bench.bot.ledger, [found])
        bench.bot.take_events()
    queued = list(jobs.jobs(bench.bot.ledger, *JobState))
    assert [job.revision for job in queued] == [new]
    assert bench.work() == Tally(done=1)
    for found in (first, late):
        events.accept(bench.bot.ledger, [found])
        bench.bot.take_events()
    assert bench.work() == Tally()


def test_an_event_about_a_model_that_is_gone_is_settled(bench):
    events.accept(bench.bot.ledger, [Event(model="maker/gone", ref="refs/heads/main", old=None, sha="1" * 40)])
    bench.bot.take_events()
    assert events.waiting(bench.bot.ledger) == {}


def test_a_failed_model_shows_its_backoff_and_runs_again_after_it(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()

    def broken(job, commits):
        raise HubFailed("the Hub was away")

    assert bench.work(run=broken) == Tally(failed=1)
    assert bench.rules() == {"maker/one": "backoff"}
    assert bench.work() == Tally()
    bench.clock.advance(3601)
    assert bench.work() == Tally(done=1)


def test_a_defect_in_one_job_does_not_stop_the_others(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.hub.model("maker/two", files_of_a_model(2))
    bench.rules()
    good = partial(cheap_run, settings=bench.settings, hub=bench.bot.reader.hub)

    def broken(job, commits):
        if job.model == "maker/one":
            raise ZeroDivisionError
        return good(job, commits)

    assert bench.work(run=broken) == Tally(done=1, failed=1)


def test_two_machines_that_take_the_same_model_end_with_one_release(bench, tmp_path):
    sha = bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()
    bench.work()
    commits = len(bench.hub.history("ours/one-GGUF"))
    elsewhere = settings_for(tmp_path / "elsewhere", authors=["maker"])
    with open_ledger(elsewhere.watch.state) as ledger, worker(ledger.path) as name:
        other = Bot(reader=bench.bot.reader, ledger=ledger, settings=elsewhere, version=__version__)
        from tests.bot.parts import enqueue, run_verdict

        enqueue(ledger, run_verdict("maker/one", sha), settings="s", version=__version__)
        run = partial(cheap_run, settings=elsewhere, hub=other.reader.hub)
        assert work(ledger, run, Stop(), Terms(worker=name)) == Tally(done=1)
    assert len(bench.hub.history("ours/one-GGUF")) == commits
    assert bench.hub.pulls("ours/one-GGUF") == []


@pytest.mark.parametrize("delete", [False, True])
def test_yank_puts_a_banner_on_every_card_and_the_bot_leaves_the_model_alone(bench, tmp_path, delete):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()
    bench.work()
    done: dict[str, str] = {}
    for _ in range(2):
        done = yank(
            bench.bot.reader,
            bench.bot.ledger,
            bench.settings,
            "maker/one",
            reason="Wrong <b>weights</b>",
            new_version="maker/two",
            delete=delete,
        )
    assert sorted(done) == ["ours/one-GGUF", "ours/one-GPTQ"]
    card = bench.hub.read("ours/one-GGUF", "README.md").decode()
    assert card.count("Taken back") == 1
    assert "new_version: maker/two" in card
    assert "<b>weights" not in card
    assert ("model-Q8_0.gguf" in bench.hub.files("ours/one-GGUF")) is not delete
    assert "hubbot.json" in bench.hub.files("ours/one-GGUF")
    assert bench.rules() == {"maker/one": "yanked"}
    with open_ledger(tmp_path / "another.sqlite") as fresh:  # the mark is on the Hub, not in one state file alone
        other = Bot(reader=bench.bot.reader, ledger=fresh, settings=bench.settings, version=__version__)
        other.look()
        assert [verdict.rule for verdict in other.judge()] == ["yanked"]


@pytest.mark.parametrize(
    ("refuse", "fail"), [(("gptq-4bit-128g",), ()), ((), ("gptq-4bit-128g",))], ids=["refused", "failed"]
)
def test_what_the_gate_refused_or_nobody_can_make_is_settled_and_the_rest_published(bench, tmp_path, refuse, fail):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()
    run = partial(cheap_run, settings=bench.settings, hub=bench.bot.reader.hub, refuse=refuse, fail=fail)
    assert bench.work(run=run) == Tally(done=1)
    assert ("model", "ours/one-GGUF") in bench.hub.store.repos
    assert ("model", "ours/one-GPTQ") not in bench.hub.store.repos
    assert bench.rules() == {"maker/one": "published"}, "the bot does not come back every round"
    with open_ledger(tmp_path / "another.sqlite") as fresh:
        other = Bot(reader=bench.bot.reader, ledger=fresh, settings=bench.settings, version=__version__)
        other.look()
        assert [verdict.rule for verdict in other.judge()] == ["published"]


@pytest.mark.parametrize("ends", ["done", "failed"])
def test_an_ending_that_could_not_be_written_is_written_before_the_next_job(bench, ends):
    for number in range(2):
        bench.hub.model(f"maker/m{number}", files_of_a_model(number))
    bench.rules()
    ledger, terms, ran = bench.bot.ledger, Terms(worker=bench.worker), []
    ledger.connection.execute("PRAGMA busy_timeout = 20")
    rival = sqlite3.connect(ledger.path, isolation_level=None)

    def run(job, commits):
        ran.append(job.model)
        if len(ran) == 1:
            rival.execute("BEGIN IMMEDIATE")
        if ends == "failed":
            raise Unsupported("no step knows it")

    for _ in range(2):
        with pytest.raises(LedgerFailed, match="locked"):
            work(ledger, run, Stop(), terms)
    assert ran == ["maker/m0"], "another was begun before the first had ended"
    assert [job.state for job in jobs.jobs(ledger, JobState.RUNNING)] == ["running"]
    rival.execute("ROLLBACK")
    assert work(ledger, run, Stop(), terms) == (Tally(done=1) if ends == "done" else Tally(failed=1))
    assert ran == ["maker/m0", "maker/m1"]
    assert [row["outcome"] for row in ledger.read("SELECT outcome FROM attempts")] == [ends, ends]


@pytest.mark.parametrize("mode", ["main", "pr"])
def test_every_commit_that_is_made_counts_in_the_hours_budget(bench, mode):
    bench.hub.model("maker/one", files_of_a_model(1))
    settings = bench.settings.model_copy(update={"publish": bench.settings.publish.model_copy(update={"mode": mode})})
    bench.rules()
    run = partial(cheap_run, settings=settings, hub=bench.bot.reader.hub)
    assert bench.work(run=run) == Tally(done=1)
    made = bench.hub.journal.count("POST .*/commit/")
    assert made == 2
    assert jobs.commits_within_hour(bench.bot.ledger) == made
    jobs.retry(bench.bot.ledger, "maker/one")
    assert bench.work(run=run) == Tally(done=1)
    assert jobs.commits_within_hour(bench.bot.ledger) == made, "nothing was committed the second time"
    if mode == "main":
        bench.bot.look()
        taken_back(bench)
        assert jobs.commits_within_hour(bench.bot.ledger) == made + 2


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_budget_that_is_spent_in_the_middle_of_a_job_is_waited_for(bench, meanwhile):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()
    slept = []

    def spend() -> None:
        jobs.record_commits(bench.bot.ledger, "of another bot", 98)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        bench.clock.advance(seconds)

    def run(job, commits):
        commits.sleep = sleep
        if meanwhile:
            spend()
        return cheap_run(job, commits, settings=bench.settings, hub=bench.bot.reader.hub)

    if not meanwhile:
        spend()
    terms = Terms(worker=bench.worker, commits_per_hour=99)
    assert work(bench.bot.ledger, run, Stop(), terms) == Tally(done=1)
    assert slept == [3600.0]


def test_a_model_that_is_taken_back_while_its_job_waits_for_the_budget_is_not_published(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()

    def sleep(seconds: float) -> None:
        taken_back(bench)
        bench.clock.advance(seconds)

    def run(job, commits):
        commits.sleep = sleep
        jobs.record_commits(bench.bot.ledger, "of another bot", 5)
        return cheap_run(job, commits, settings=bench.settings, hub=bench.bot.reader.hub)

    terms = Terms(worker=bench.worker, commits_per_hour=5)
    assert work(bench.bot.ledger, run, Stop(), terms) == Tally(dropped=1)
    assert bench.hub.journal.count("POST .*/commit/") == 0


def taken_back(bench: Bench) -> dict[str, str]:
    return yank(
        bench.bot.reader,
        bench.bot.ledger,
        bench.settings,
        "maker/one",
        reason="Wrong weights",
        new_version="maker/two",
        delete=False,
    )


def test_a_model_that_is_taken_back_while_its_job_runs_is_not_published(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()

    def run(job, commits):
        taken_back(bench)
        return cheap_run(job, commits, settings=bench.settings, hub=bench.bot.reader.hub)

    assert bench.work(run=run) == Tally(dropped=1)
    assert {name for _, name in bench.hub.store.repos} == {"maker/one"}
    assert [job.state for job in jobs.jobs(bench.bot.ledger, *JobState)] == [JobState.DROPPED]
    assert bench.rules() == {"maker/one": "yanked"}
    assert bench.work() == Tally()


def test_what_waits_of_a_model_that_another_machine_took_back_is_dropped(bench, tmp_path):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()
    bench.work()
    bench.hub.commit("maker/one", {"model.safetensors": files_of_a_model(2)["model.safetensors"]})
    assert bench.rules() == {"maker/one": "changed"}
    with open_ledger(tmp_path / "another.sqlite") as elsewhere:
        taken_back(replace(bench, bot=replace(bench.bot, ledger=elsewhere)))
    assert bench.rules() == {"maker/one": "yanked"}
    assert bench.work() == Tally()
    assert "Taken back" in bench.hub.read("ours/one-GGUF", "README.md").decode()


def test_pull_requests_of_a_model_that_is_taken_back_are_closed(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    settings = bench.settings.model_copy(update={"publish": bench.settings.publish.model_copy(update={"mode": "pr"})})
    bench.rules()
    run = partial(cheap_run, settings=settings, hub=bench.bot.reader.hub)
    assert bench.work(run=run) == Tally(done=1)
    assert taken_back(bench) == dict.fromkeys(("ours/one-GGUF", "ours/one-GPTQ"), "pull request 1 closed")
    assert [bench.hub.pulls(repo)[0].status for repo in ("ours/one-GGUF", "ours/one-GPTQ")] == ["closed", "closed"]


def test_the_disk_of_a_job_that_is_parked_is_given_back(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.hub.model("maker/two", files_of_a_model(2))
    bench.rules()

    def run(job, commits):
        for name in ("gguf", ".work"):
            (folder_of(bench.settings, job.model) / name).mkdir(parents=True)
        (folder_of(bench.settings, job.model) / "hubbot.json").touch()
        raise Unsupported("no step knows it") if job.model == "maker/one" else HubFailed("the Hub was away")

    terms = Terms(worker=bench.worker)
    work_here(bench.bot.ledger, Stop(), lambda: True, run=run, terms=terms, settings=bench.settings)
    left = {path.name for path in folder_of(bench.settings, "maker/one").iterdir()}
    assert left == {"hubbot.json"}
    assert (folder_of(bench.settings, "maker/two") / ".work").exists(), "it is tried again and goes on from there"


@pytest.mark.parametrize("mode", ["pr", "none"])
def test_branches_of_a_pull_request_are_made_once_it_is_merged(bench, mode):
    release = gptq_release(bench.settings.out, "gptq-4bit-128g", "gptq-8bit-128g", repo="ours/tiny-GPTQ")
    card = release.branches["main"]["README.md"]
    card.write_text(card.read_text().replace("tags: [tiny]", "tags: [hubbot]\nbase_model_relation: quantized"))
    publish(release, bench.bot.reader.hub, mode="pr")
    settings = bench.settings.model_copy(update={"publish": bench.settings.publish.model_copy(update={"mode": mode})})
    bot = replace(bench.bot, settings=settings)
    bench.hub.model("maker/one", files_of_a_model(1))
    bot.look()
    assert "refs/heads/gptq-8bit-128g" not in bench.hub.repo(release.repo_id).refs
    bench.hub.merge_pull(release.repo_id, 1)
    bot.look(finish=False)
    assert "refs/heads/gptq-8bit-128g" not in bench.hub.repo(release.repo_id).refs, "a dry run changes nothing"
    fault = bench.hub.fail("POST .*/branch/", status=403)
    bot.look()
    assert fault.hit == 1
    bot.look()
    assert "refs/heads/gptq-8bit-128g" in bench.hub.repo(release.repo_id).refs
    before = bot.reader.requests
    bot.look()
    assert bot.reader.requests - before == 2


def test_a_source_that_vanishes_for_a_moment_is_not_taken_for_changed(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()
    bench.work()
    bench.hub.commit("maker/one", {"README.md": b"---\nlicense: mit\n---\nNew words.\n"})
    for hidden in (1, 2):  # the new commit's files, then both commits'
        bench.hub.fail("GET /api/models/maker/one/tree/", status=404, times=hidden)
        assert bench.rules() == {"maker/one": "unreadable"}
        bench.hub.heal()
    bench.hub.fail("GET /api/models/maker/one/tree/", skip=1, status=404)
    bench.rules()
    bench.hub.heal()
    assert bench.rules() == {"maker/one": "readme-only"}


@pytest.mark.parametrize("bench", [{"collections": ["maker/best-1"]}], indirect=True)
def test_one_model_of_a_collection_that_cannot_be_read_keeps_no_other_back(bench):
    for name in ("one", "two", "three"):
        bench.hub.model(f"maker/{name}", files_of_a_model(1))
    bench.hub.collection("maker/best-1", ["maker/one", "maker/gone", "maker/two", "maker/three"])
    bench.hub.fail("GET /api/models/maker/one", status=400, times=None)
    with pytest.raises(HubFailed, match="1 of 4"):  # the only source
        bench.bot.look()
    assert {verdict.model for verdict in bench.bot.judge()} == {"maker/two", "maker/three"}
    bench.hub.heal()
    bench.bot.look()
    assert {verdict.model for verdict in bench.bot.judge()} == {"maker/one", "maker/two", "maker/three"}


def test_events_and_polls_are_taken_between_two_jobs(bench, monkeypatch):
    monkeypatch.setattr("hubbot.bot.daemon.WAKE", 0.0)
    for number in range(2):
        bench.hub.model(f"maker/m{number}", files_of_a_model(number))
    ran, stop = [], Stop()

    def run(job, commits):
        ran.append(job.model)
        if job.model == "maker/m0":
            bench.hub.model("elsewhere/told", files_of_a_model(5))
            told = Event(model="elsewhere/told", ref="refs/heads/main", old=None, sha="1" * 40)
            events.accept(bench.bot.ledger, [told])
        elif job.model == "maker/m1":
            queued = [row.model for row in jobs.jobs(bench.bot.ledger, JobState.QUEUED)]
            assert queued == ["elsewhere/told"], "the event waited until the queue was empty"
        else:
            stop.asked = True

    def execute(ledger, stop, between):
        return work(ledger, run, stop, Terms(worker=bench.worker), between)

    keep_watching(bench.bot, 600, execute, stop)
    assert ran == ["maker/m0", "maker/m1", "elsewhere/told"]


def test_a_defect_in_one_round_does_not_end_the_daemon(bench, monkeypatch, capsys):
    monkeypatch.setattr("hubbot.bot.daemon.WAKE", 0.0)
    genuine, rounds, stop = Bot.look, [], Stop()

    def look(self, **options):
        rounds.append(1)
        if len(rounds) == 1:
            raise KeyError(self.reader.hub.token)
        stop.asked = True
        return genuine(self, **options)

    monkeypatch.setattr(Bot, "look", look)
    keep_watching(bench.bot, 0.0, None, stop)
    assert len(rounds) == 2
    said = capsys.readouterr().err
    assert "KeyError" in said
    assert bench.bot.reader.hub.token not in said


def test_a_round_that_is_due_is_not_kept_up_by_a_long_queue(bench, monkeypatch):
    for number in range(3):
        bench.hub.model(f"maker/m{number}", files_of_a_model(number))
    ran, stop = [], Stop()

    def run(job, commits):
        ran.append(job.model)
        if len(ran) == 1:
            bench.hub.model("maker/a-late-one", files_of_a_model(9))
        if job.model == "maker/a-late-one":
            stop.asked = True
        assert len(ran) < 10

    def execute(ledger, stop, between):
        return work(ledger, run, stop, Terms(worker=bench.worker), between)

    keep_watching(bench.bot, 0.0, execute, stop)
    assert "maker/a-late-one" in ran
    assert bench.hub.journal.count("author=maker") >= 3


def test_no_token_is_in_the_state_file_or_in_anything_published(bench, tmp_path):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()
    token = bench.bot.reader.hub.token

    def broken(job, commits):
        raise HubFailed(f"Bearer {token} was sent to {token}")

    bench.work(run=broken)
    bench.clock.advance(3601)
    bench.work()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    for path in written:
        assert token.encode() not in path.read_bytes(), path
    for repo in ("ours/one-GGUF", "ours/one-GPTQ"):
        for name in bench.hub.files(repo):
            assert token.encode() not in bench.hub.read(repo, name), name


def test_two_models_of_one_name_get_repos_of_their_own_and_settle(bench, tmp_path):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()
    bench.work()
    bench.hub.model("evil/one", files_of_a_model(2))
    watch = bench.settings.watch.model_copy(update={"authors": ("maker", "evil")})
    bench.bot = replace(bench.bot, settings=bench.settings.model_copy(update={"watch": watch}))
    bench.rules()
    assert bench.work() == Tally(done=1)
    names = {name for _, name in bench.hub.store.repos if name.startswith("ours/")}
    assert names == {"ours/one-GGUF", "ours/one-GPTQ", "ours/evil-one-GGUF", "ours/evil-one-GPTQ"}
    assert bench.rules() == {"maker/one": "published", "evil/one": "published"}


def test_a_yank_done_again_commits_nothing(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.rules()
    bench.work()
    taken_back(bench)
    cards = [bench.hub.read(repo, "README.md") for repo in ("ours/one-GGUF", "ours/one-GPTQ")]
    bench.hub.journal.clear()
    taken_back(bench)
    assert bench.hub.journal.count("POST .*/commit/") == 0
    assert cards == [bench.hub.read(repo, "README.md") for repo in ("ours/one-GGUF", "ours/one-GPTQ")]


def test_a_cursor_that_the_hub_refuses_is_forgotten_and_the_list_read_anew(bench):
    for number in range(30):
        bench.hub.model(f"maker/m{number}", files_of_a_model(number))
    bench.hub.page_size = 7
    bench.hub.fail(r"GET /api/models\?.*cursor|GET /api/models\?.*(p|page|skip|offset)=", skip=1, times=8, status=500)
    with pytest.raises(HubFailed):
        bench.bot.look()
    bench.hub.heal()
    bench.hub.fail("GET /api/models.*cursor", status=400)
    bench.bot.look()
    assert len(list(bench.bot.judge())) == 30


def test_a_model_that_is_refused_by_these_releases_is_parked_under_their_names(bench):
    bench.hub.model("maker/one", files_of_a_model(1))
    bench.hub.model("maker/two", files_of_a_model(2))
    bench.rules()

    def run(job, commits):
        raise Unsupported("no step knows it") if job.model == "maker/one" else HubFailed("the Hub was away")

    assert bench.work(run=run) == Tally(failed=2)
    refused = {name: jobs.last_job(bench.bot.ledger, name).refused_by for name in ("maker/one", "maker/two")}
    assert refused == {"maker/one": read_from(), "maker/two": None}
