"""Jobs as tasks of a real Ray cluster on this machine."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from hubbot.bot.cluster import Cluster, Failure, Resources, _attempt, connected, resources_of, settle
from hubbot.bot.ledger import jobs, mirror
from hubbot.bot.ledger.alive import worker
from hubbot.bot.ledger.rows import JobState
from hubbot.bot.ledger.store import open_ledger
from hubbot.bot.stop import Stop
from hubbot.bot.worker import Tally, Terms
from hubbot.domain import SCHEMA_VERSION, Job, Peak, Record, Source
from hubbot.errors import HubFailed, TokenRefused, ToolMissing, UnsafeSource, Unsupported
from hubbot.hub.rate_limit import RateLimit
from hubbot.hub.read.download import Mismatch
from hubbot.settings import Settings
from tests.bot.parts import enqueue, run_verdict

try:
    import ray
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(ray is None, reason="ray is not installed: pip install 'hubbot[ray]'")


class Defined(HubFailed):
    """An error that the head does not know by name."""


def task(job: Job, commits: RateLimit, folder: Path) -> Record:
    """What a node does: count the try, then end as the model's name says."""
    tries = len(list(folder.glob(f"{job.model.replace('/', '-')}.*")))
    (folder / f"{job.model.replace('/', '-')}.{tries}").touch()
    if "lost" in job.model and tries == 0:
        (folder / "in the middle").write_text(str(os.getpid()))
    if "slow" in job.model or ("lost" in job.model and tries == 0):
        time.sleep(120)
    if "unsupported" in job.model:
        raise Unsupported("no step knows this architecture")
    return Record(
        schema=SCHEMA_VERSION,
        hubbot={},
        tools={},
        hardware={},
        command="",
        config={},
        source=Source(folder="", repo=job.model, revision=job.revision, files={}),
        calibration=None,
        evaluation=None,
        base=None,
        variants=(),
        timings={},
        peak=Peak(),
    )


def _kill(said: Path) -> None:
    """Kill the worker that says its number there, a second later: its file is there, its result is not."""
    while not said.exists() or not said.read_text():
        time.sleep(0.1)
    time.sleep(1)
    os.kill(int(said.read_text()), signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path]]:
    folder = tmp_path_factory.mktemp("tries")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    with connected(None, partial(task, folder=folder), lambda job, gpus: Resources(memory=10**8), parallel=2) as found:
        yield found, folder


@pytest.mark.slow
@needs_ray
def test_jobs_run_on_the_cluster_and_that_of_a_worker_killed_in_the_middle_runs_again(cluster, tmp_path):
    found, folder = cluster
    Thread(target=_kill, args=(folder / "in the middle",), daemon=True).start()
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        for name in ("plain", "lost", "unsupported"):
            enqueue(ledger, run_verdict(f"a/{name}"), settings="s", version="1")
        assert found.work(ledger, Stop(), lambda: True, terms=Terms(worker=me)) == Tally(done=2, failed=1)
        outcomes = [
            (row["model"], row["outcome"])
            for row in ledger.read("SELECT model, outcome FROM attempts a JOIN jobs j ON j.id = a.job ORDER BY a.id")
        ]
        assert sorted(outcomes) == [
            ("a/lost", "done"),
            ("a/lost", "lost"),
            ("a/plain", "done"),
            ("a/unsupported", "failed"),
        ]
        parked = jobs.last_job(ledger, "a/unsupported")
        assert (parked.state, parked.error) == (JobState.PARKED, "no step knows this architecture")
    assert len(list(folder.glob("a-lost.*"))) == 2


@pytest.mark.skipif(ray is not None, reason="ray is installed")
def test_without_ray_the_error_says_what_to_install():
    with (
        pytest.raises(ToolMissing, match=r"hubbot\[ray\]"),
        connected(None, partial(task, folder=Path()), lambda job, gpus: Resources()),
    ):
        pass


# --- what travels, without a cluster ------------------------------------------------------------------------


def _claimed(ledger, me: str):
    enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
    return jobs.claim(ledger, me)


def _outcome(error: Exception, *, token_works: bool = True) -> Failure:
    def broken(job: Job, commits: RateLimit) -> Record:
        commits.acquire()
        raise error

    outcome = _attempt(broken, lambda: token_works, Job(model="a/m", revision="1" * 40))
    assert isinstance(outcome, Failure)
    return outcome


@pytest.mark.parametrize("error", [Mismatch("spoilt"), UnsafeSource("hostile"), TokenRefused("no"), Defined("ours")])
def test_an_error_keeps_its_meaning_on_the_way_from_a_node(error):
    kind = HubFailed if isinstance(error, Defined) else type(error)
    found = pickle.loads(pickle.dumps(_outcome(error))).error()
    assert (type(found), str(found)) == (kind, str(error))


def test_a_nodes_worthless_token_blames_no_job_and_a_missing_right_does(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        claim = _claimed(ledger, me)
        with pytest.raises(TokenRefused):
            settle(ledger, claim, _outcome(TokenRefused("revoked"), token_works=False), 1.0, Terms(worker=me))
        assert jobs.last_job(ledger, "a/m").state is JobState.RUNNING, "it is given back with the others"
        settle(ledger, claim, _outcome(TokenRefused("may not write there")), 1.0, Terms(worker=me))
        assert jobs.last_job(ledger, "a/m").failures == 1


def test_the_head_counts_the_commits_of_its_nodes(tmp_path):
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        settle(ledger, _claimed(ledger, me), _outcome(HubFailed("away")), 1.0, Terms(worker=me))
        assert jobs.commits_within_hour(ledger) == 1


@pytest.mark.slow
@needs_ray
def test_a_task_whose_model_is_taken_back_is_ended_and_its_job_dropped(cluster, tmp_path):
    found, folder = cluster
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("a/slow"), settings="s", version="1")

        def between() -> bool:
            if list(folder.glob("a-slow.*")):
                mirror.store_yank(ledger, "a/slow", "wrong weights")
            return True

        assert found.work(ledger, Stop(), between, terms=Terms(worker=me)) == Tally(dropped=1)
        [job] = jobs.jobs(ledger, JobState.DROPPED)
        assert job.model == "a/slow"


@pytest.mark.slow
@needs_ray
def test_a_node_without_hubbot_is_said_and_its_job_waits_untouched(tmp_path, cluster, monkeypatch):
    found, _ = cluster

    def unfit(*_):
        raise ModuleNotFoundError("No module named 'hubbot'")

    monkeypatch.setattr("hubbot.bot.cluster._attempt", unfit)
    with open_ledger(tmp_path / "s") as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("a/m"), settings="s", version="1")
        with pytest.raises(ToolMissing, match="No module named"):
            found.work(ledger, Stop(), lambda: True, terms=Terms(worker=me))
        job = jobs.last_job(ledger, "a/m")
        assert (job.state, job.failures) == (JobState.QUEUED, 0)


@pytest.mark.slow
@pytest.mark.heavy
def test_a_job_asks_for_what_its_plan_needs_whatever_the_head_has(hub, tiny_model, tmp_path):
    hub.model("maker/tiny", tiny_model("llama"))
    settings = Settings(variants="Q8_0", out=tmp_path / "out")
    job = Job(model="maker/tiny", revision=hub.history("maker/tiny")[0].id)

    def ask(gpus: int, device: str = "auto") -> Resources:
        own = settings.model_copy(update={"device": device})
        return resources_of(job, gpus, settings=own, hub=hub.seen())

    with_gpu, without = ask(2), ask(0)
    assert (with_gpu.gpus, without.gpus, ask(2, "cpu").gpus) == (1, 0, 0)
    assert without.memory > with_gpu.memory > 10**8
