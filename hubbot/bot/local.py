"""A job of the queue run on this machine: its own output folder, the pipeline, and the disk given back."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from hubbot.bot.ledger import jobs
from hubbot.bot.ledger.store import Ledger
from hubbot.bot.stop import Stop
from hubbot.bot.worker import Between, RunJob, Tally, Terms, work
from hubbot.domain import Job, Record
from hubbot.errors import VariantsRefused
from hubbot.formats import FAMILIES
from hubbot.hub.client import Hub
from hubbot.hub.rate_limit import RateLimit
from hubbot.settings import PublishSettings, Settings

_LARGE = (*FAMILIES, ".work")  # what of an output folder takes gigabytes


def folder_of(settings: Settings, model: str) -> Path:
    """Where a model's files lie: one folder each below `out`."""
    return settings.out / model.replace("/", "--")


def publish_of(job: Job, settings: Settings) -> PublishSettings:
    """How a job is published: over main, or for `on_update = "revision"` as branches named for the source's commit."""
    beside = f"source-{job.revision[:8]}" if job.update == "revision" else None
    return settings.publish.model_copy(update={"revision": beside})


def settings_of(job: Job, settings: Settings) -> Settings:
    """The settings as one job has them."""
    variants = job.variants or settings.variants
    out = folder_of(settings, job.model)
    return settings.model_copy(update={"revision": job.revision, "out": out, "variants": variants})


def run_job(job: Job, commits: RateLimit, *, settings: Settings, hub: Hub) -> Record:
    """Fetch, make, judge and publish a model. Once it is published its large files are removed.

    Raises VariantsRefused where nothing passed; any HubbotError of the pipeline.
    """
    from hubbot.job import pipeline  # not above: torch comes with it, which a watch without --run needs not

    out = folder_of(settings, job.model)
    own = settings_of(job, settings).model_copy(update={"publish": publish_of(job, settings)})
    command = f"hubbot run {job.model} --revision {job.revision}"
    within = replace(hub, commits=commits)
    record = pipeline.run(pipeline.Run(model=job.model, settings=own, hub=within, command=command)).record
    if settings.publish.mode != "none":
        _clear(out)
    if not any(variant.passed for variant in record.variants):
        reasons = "; ".join(f"{variant.name}: {variant.reason}" for variant in record.variants[:3])
        raise VariantsRefused(f"No variant of {job.model} passed ({reasons}). See {out}/hubbot.json.")
    return record


def work_here(ledger: Ledger, stop: Stop, between: Between, *, run: RunJob, terms: Terms, settings: Settings) -> Tally:
    """Run what is due on this machine, and give back the disk that failed and dropped jobs hold. Raises as `work` does."""
    tally = work(ledger, run, stop, terms, between)
    if tally != Tally():
        clear_settled(ledger, settings)
    return tally


def clear_settled(ledger: Ledger, settings: Settings) -> None:
    """Remove the large files of jobs that are not tried again by themselves; records and cards stay.

    Where nothing is published, what was made is what was wanted: only the work folder goes.
    """
    names = _LARGE if settings.publish.mode != "none" else _LARGE[-1:]
    for model in jobs.settled(ledger):
        out = folder_of(settings, model)
        if not any((out / name).exists() for name in names):
            continue
        with ledger.transaction():  # nobody takes the model up again while its files go
            if model in jobs.settled(ledger):
                _clear(out, names)


def _clear(out: Path, names: Sequence[str] = _LARGE) -> None:
    for name in names:
        shutil.rmtree(out / name, ignore_errors=True)


def planned_resources(job: Job, settings: Settings, hub: Hub, *, gpu: bool) -> dict[str, int]:
    """What a job takes by its plan on a machine that only the budgets describe: bytes of disk, ram and vram.

    gpu: whether that machine has one, where `device` leaves it open. Raises HubbotError where no plan can be made.
    """
    from hubbot.job import pipeline

    device = settings.device if settings.device != "auto" else "cuda" if gpu else "cpu"
    own = settings_of(job, settings).model_copy(update={"device": device})
    run = pipeline.Run(model=job.model, settings=own, hub=hub)
    return asdict(pipeline.plan(run, elsewhere=True).need)
