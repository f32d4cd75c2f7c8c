"""The time in an answer is what jobs of similar size took, or goes by rates that docs/benchmarks.md has, or is not known."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hubbot.bot.ledger import mirror
from hubbot.bot.ledger.store import open_ledger
from hubbot.bot.request.duration import _sweep_seconds, expected
from hubbot.hub.seen import Release
from hubbot.job.pipeline import Run
from hubbot.record.file import from_json, to_json
from hubbot.settings import Settings
from tests.bot.request.test_attend import counter, planned, sha  # noqa: F401 - fixtures
from tests.hub.server import Hub

PLAN = replace(planned(Run(model="maker/one", settings=Settings(variants="Q8_0"))), parameters=10**9)
ROOT = Path(__file__).parents[3]


def release(model: str, weights: float, seconds: float, **more) -> Release:
    kept = {"variants": {"Q8_0": "published", "Q4_K_M": "refused"}, "machine": "NVIDIA H100", **more}
    return Release(
        repo=f"us/{model[2:]}-{len(kept['variants'])}", sha="s", model=model, revision="r", files={}, settings="s", version="1",
        weights=int(weights), seconds=seconds, **kept,
    )  # fmt: skip


@pytest.fixture
def ledger(tmp_path):
    with open_ledger(tmp_path / "state") as found:
        yield found


def test_jobs_of_half_to_twice_the_size_say_how_long_it_takes_each_once(ledger):
    for one in (
        release("a/half", 0.5e9, 600.0),
        release("a/half", 0.5e9, 600.0, variants={"bnb-nf4": "published"}),  # its other repo
        release("a/twice", 2e9, 1_830.0, variants={"Q8_0": "published"}, machine="<b>AMD</b>"),
        release("a/small", 0.49e9, 9.0),
        release("a/large", 2.1e9, 90_000.0),
        release("a/silent", 1e9, 0.0),
    ):
        mirror.store_release(ledger, one)
    told = expected(PLAN, ledger, Settings())
    assert told.startswith(
        "Time: 10 min 00 s to 30 min 30 s, as 2 jobs of similar size took (0.50 B to 2.00 B weights, 1 "
    )
    assert "NVIDIA H100" in told
    assert "<b>" not in told


def test_without_such_a_job_a_gpu_is_told_by_the_measured_rates_and_a_cpu_not_at_all(ledger):
    assert expected(PLAN, ledger, Settings()).startswith("Time: not known. No job of similar size")
    told = expected(replace(PLAN, device="cuda"), ledger, Settings())
    assert re.match(r"Time: \d+\.\d s for the sweep, if the GPU is as fast as the H100", told)
    assert "No job of similar size was made here yet" in told


def test_the_rates_are_those_of_the_page():
    """A block of the page's model with the page's eighteen variants takes what the page has measured."""
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    measured = float(re.search(r"^\| the whole block \| ([0-9.]+) \|", page, re.MULTILINE)[1])
    block = replace(PLAN, parameters=220_000_000, variants=PLAN.variants * 18)
    settings = Settings.model_validate({"evaluation": {"dataset": "text.jsonl", "windows": 32, "context": 2_048}})
    assert _sweep_seconds(block, settings) == pytest.approx(measured, abs=0.1)  # medians of steps do not quite add up
    assert (
        _sweep_seconds(replace(block, sweeps=PLAN.sweeps * 2), settings) > measured + 0.5
    )  # read and calibrated again
    more = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"windows": 64})})
    assert _sweep_seconds(block, more) == pytest.approx(_sweep_seconds(block, settings) + 2.65, abs=0.01)


def test_the_answer_tells_the_time_of_a_release_as_its_record_has_it(counter, hub: Hub, sha):  # noqa: F811
    from hubbot.domain import Job
    from hubbot.hub.rate_limit import RateLimit
    from tests.bot.cheap import cheap_run
    from tests.bot.request.test_attend import request
    from tests.bot.request.test_parse import form

    assert "Time: not known" in counter.shown(request(counter))
    cheap_run(Job(model="maker/one", revision=sha), RateLimit(), settings=counter.desk.settings, hub=counter.desk.reader.hub)  # fmt: skip
    record = from_json(hub.read("ours/one-GGUF", "hubbot.json"))
    measured = replace(
        record,
        source=replace(record.source, parameters=16),
        timings={"plan": 2.0, "sweep: Q8_0": 40.0},
        hardware={"gpu": None, "cpu": "A processor"},
    )
    hub.commit("ours/one-GGUF", {"hubbot.json": to_json(measured).encode()})
    assert (
        "Time: 42.0 s, as the one job of similar size took (0.00 M weights, 2 variants, on A processor)"
        in counter.shown(request(counter, form("maker/one", "Q4_K_M")))
    )
