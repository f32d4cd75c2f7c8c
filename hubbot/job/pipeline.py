"""The story of one job, a line a stage.

    fetch -> plan -> sweep -> load check -> gate -> card -> publish -> record

This process holds the token, fetches and publishes. What reads and runs the model's files happens in
confined children (`hubbot.child.stages`, `hubbot.child.check`), which have neither token nor network.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter

from hubbot import errors, log
from hubbot.cards.card import write_cards
from hubbot.cards.report import write_report
from hubbot.confine import isolate
from hubbot.domain import Record, Source, Status, VariantRecord
from hubbot.errors import BadSettings
from hubbot.formats.gguf.naming import shards_of
from hubbot.formats.names import parse_variants
from hubbot.hub.publish.release import Receipt
from hubbot.hub.read.source import fetch, fetch_headers
from hubbot.job.compose import recorded, spent
from hubbot.job.resume import finished, forget_sweeps, sweep_folder
from hubbot.job.texts import digests, evaluation_text, fetch_texts
from hubbot.job.upload import release
from hubbot.machine.peak import PeakMeter
from hubbot.machine.shortage import telling_what_ran_out
from hubbot.record.file import FILE_NAME, write_record
from hubbot.release.gate import gate
from hubbot.release.licence import judge_licence, require_licence
from hubbot.release.licence_texts import keep_licences
from hubbot.release.repos import plan_repos
from hubbot.settings import Settings

__all__ = ["Run", "evaluate", "plan", "release_record", "require", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One call of `hubbot run`: where things lie and who may do what."""

    model: str  # Hub id or folder
    settings: Settings
    token: str | None = None
    endpoint: str | None = None
    command: str = "hubbot run"
    timings: dict[str, float] = field(default_factory=dict)
    receipts: list[Receipt] = field(default_factory=list)  # what publishing each repo came to

    @property
    def out(self) -> Path:
        return self.settings.out.expanduser().resolve()

    @property
    def work(self) -> Path:
        return self.out / ".work"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        with log.stage(name), telling_what_ran_out(self.out):
            yield
        self.timings[name] = self.timings.get(name, 0.0) + time.monotonic() - start


def run(job: Run) -> Record:
    """Make, measure, judge, describe and, where asked for, publish a model's variants.

    Returns the record, which also lies in OUT/hubbot.json; what the gate refused stands in it with its
    reason. Raises HubbotError for what stops the whole job.
    """
    _refuse_contradictions(job.settings)
    job.work.mkdir(parents=True, exist_ok=True)
    with PeakMeter(job.out, device=job.settings.device) as meter:
        with job.stage("plan"):
            headers = _headers(job)
            done = finished(job.out, headers, job.settings, lambda: digests(_texts(job)))
            planned = [] if done else _survey(job, headers, refuse=True)["plan"]["sweeps"]
        if done:
            log.say(f"{job.out / FILE_NAME} already holds these variants of this model; --force makes them again.")
            return release_record(job, done)
        with job.stage("fetch"):
            source, texts = _described(job, _fetch(job)), _texts(job)
        made = []
        for work, variants in _sweeps(job, source, texts, planned).items():
            with job.stage("sweep"):
                made.append(_sweep(job, source, texts, variants, work))
        record = recorded(made, source=source, settings=job.settings, command=job.command, out=job.out)
        with job.stage("load check"):
            record = _checked(job, record, made)
    record = replace(record, peak=meter.peak)
    with job.stage("gate and card"):
        record = _judged(job, record, made)
    return release_record(job, record)


def plan(job: Run, *, show: str = "", elsewhere: bool = False) -> dict[str, Any]:
    """What a run would make and need, from the headers alone, as JSON; `show="table"` prints it for people too.

    elsewhere: the run will be on another machine, of which the budgets say what it has.
    """
    _refuse_contradictions(job.settings)
    job.work.mkdir(parents=True, exist_ok=True)
    return dict(_survey(job, _headers(job), show=show, elsewhere=elsewhere)["plan"])


def require(found: Mapping[str, Any]) -> None:
    """Raise the first refusal of a plan in JSON."""
    for refusal in found["refusals"]:
        raise getattr(errors, refusal["error"])(refusal["message"])


def evaluate(job: Run, paths: Sequence[Path]) -> dict[str, Any]:
    """Measure artefacts, also ones made elsewhere, against their base, which is the job's model.

    Returns `evaluation`, `base` and `scores` (artefact name -> score) as JSON.
    """
    artefacts = dict.fromkeys(tuple(shards_of(path.absolute())) for path in paths)  # any shard stands for all of them
    job.work.mkdir(parents=True, exist_ok=True)
    settings = job.settings
    with job.stage("fetch"):
        source = _fetch(job)
        text = evaluation_text(settings, into=job.work / "texts", token=job.token, endpoint=job.endpoint)
    with job.stage("evaluate"), TemporaryDirectory(dir=job.work) as work:
        more = {"paths": [str(files[0]) for files in artefacts], "texts": text, "work": work}
        readable = [file for files in artefacts for file in files]
        return dict(_confined(job, "hubbot.child.stages:evaluate", source, more, readable=readable))


# --- stages -----------------------------------------------------------------------------------------


def _headers(job: Run) -> Source:
    return fetch_headers(
        job.model,
        revision=job.settings.revision,
        into=job.work / "headers",
        token=job.token,
        endpoint=job.endpoint,
        allow_pickle=job.settings.allow_pickle,
    )


def _fetch(job: Run) -> Source:
    return fetch(
        job.model,
        revision=job.settings.revision,
        into=job.work / "source",
        token=job.token,
        endpoint=job.endpoint,
        allow_pickle=job.settings.allow_pickle,
    )


def _texts(job: Run) -> dict[str, Any]:
    return fetch_texts(job.settings, into=job.work / "texts", token=job.token, endpoint=job.endpoint)


def _survey(
    job: Run, source: Source, *, show: str = "", refuse: bool = False, elsewhere: bool = False
) -> dict[str, Any]:
    more = {"show": show, "refuse": refuse, "elsewhere": elsewhere, "out": str(job.out)}
    answer = _confined(job, "hubbot.child.stages:survey", source, more)
    return dict(answer)


def _described(job: Run, source: Source) -> Source:
    return TypeAdapter(Source).validate_python(_confined(job, "hubbot.child.stages:describe", source, {}))


def _sweeps(
    job: Run, source: Source, texts: Mapping[str, Any], planned: Sequence[Mapping[str, Any]]
) -> dict[Path, list[str]]:
    """The folder of every sweep -> its variants. What sweeps of other jobs have left is dropped: the plan counts on its room."""
    sweeps = {}
    for number, variants in enumerate(list(sweep["variants"]) for sweep in planned):
        folder = sweep_folder(
            job.work, number, source=source, settings=job.settings, texts=digests(texts), variants=variants
        )
        sweeps[folder] = variants
    forget_sweeps(job.work, but=sweeps)
    return sweeps


def _sweep(job: Run, source: Source, texts: Mapping[str, Any], variants: Sequence[str], work: Path) -> dict[str, Any]:
    work.mkdir(parents=True, exist_ok=True)
    more = {"work": str(work), "out": str(job.out), "variants": ",".join(variants), "texts": dict(texts)}
    return dict(_confined(job, "hubbot.child.stages:make", source, more))


def _checked(job: Run, record: Record, made: Sequence[Mapping[str, Any]]) -> Record:
    """Every variant that was made read by its own runtime, and what base and variants say to the same prompts."""
    there = replace(record, variants=tuple(variant for variant in record.variants if variant.files))
    if not there.variants:
        return record
    references = {name: path for part in made for name, path in part["references"].items()}
    more = {"record": asdict(there), "references": references, "out": str(job.out), "work": str(job.work)}
    checks = _confined(job, "hubbot.child.check:check", record.source, more)
    read = {variant.name: variant for variant in TypeAdapter(list[VariantRecord]).validate_python(checks["variants"])}
    return replace(record, variants=tuple(read.get(variant.name, variant) for variant in record.variants))


def _judged(job: Run, record: Record, made: Sequence[Mapping[str, Any]]) -> Record:
    tokenizer = made[0]["tokenizer"] if made else None
    record = gate(record, job.settings.gate, tokenizer=tokenizer)
    record = replace(record, timings=spent(job.timings, made))
    keep_licences(record.source, job.out)
    write_cards(record, job.settings.publish, job.out)
    write_report(record, job.out)
    write_record(record, job.out)  # last: where it lies, a run finds nothing left to do
    forget_sweeps(job.work)
    return record


def release_record(job: Run, record: Record) -> Record:
    """Publish what passed, where the settings ask for it; `job.receipts` says what came of it.

    Raises BadSettings where the settings contradict each other, or the record was made without the gate,
    LicenceForbids for a model that nobody may copy.
    """
    if job.settings.publish.mode == "none":
        return record
    _refuse_contradictions(job.settings)
    _refuse_unjudged(record)
    _refuse_unlicensed(job.settings, record)
    with job.stage("publish"):
        receipts = release(record, job.settings, out=job.out, token=job.token, endpoint=job.endpoint)
    job.receipts.extend(receipts.values())
    there = {
        variant.name
        for repo in plan_repos(record, job.settings.publish)
        for variant in repo.variants
        if receipts[repo.repo_id].status in ("published", "unchanged")
    }
    variants = tuple(
        replace(variant, status=Status.PUBLISHED) if variant.name in there else variant for variant in record.variants
    )
    record = replace(record, variants=variants)
    write_record(record, job.out)
    return record


# --- calling the children -----------------------------------------------------------------------------


def _confined(job: Run, target: str, source: Source, more: Mapping[str, Any], *, readable: Sequence[Path] = ()) -> Any:
    argument = {
        "source": asdict(source),
        "settings": job.settings.model_dump(mode="json"),
        "work": str(job.work),
        **more,
    }
    return isolate.call(
        target, argument, work=job.work, writable=[job.out], readable=[Path(source.folder), *readable]
    ).value


def _refuse_contradictions(settings: Settings) -> None:
    parse_variants(settings.variants)  # raises for a name outside the grammar
    if settings.publish.mode != "none" and not settings.gate.enabled:
        msg = "--no-gate makes and measures variants that nobody judged; such a run is never published. Leave out --no-gate or --publish."
        raise BadSettings(msg)
    if settings.publish.mode != "none" and not settings.publish.namespace:
        msg = "--publish needs the user or organisation that owns the published repos. Name it with --namespace."
        raise BadSettings(msg)


def _refuse_unjudged(record: Record) -> None:
    limits = record.config.get("gate")
    if isinstance(limits, Mapping) and limits.get("enabled") is False:
        msg = f"{record.source.name} was made with the gate off, so nobody judged its variants; such a run is never published. Make it again with the gate, then publish."
        raise BadSettings(msg)


def _refuse_unlicensed(settings: Settings, record: Record) -> None:
    source = record.source
    verdict = judge_licence(source.license, source.license_name, source.license_link)
    require_licence(verdict, allow_unlicensed=settings.licence.allow_unlicensed)
