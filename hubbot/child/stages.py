"""What runs in the confined child: everything that reads the model's files and runs the model.

Each function takes one JSON value and gives one, so that it can be called through `hubbot.confine.isolate`.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from rich.console import Console

from hubbot import log
from hubbot.domain import Score, Source, TextRecord
from hubbot.errors import BadText
from hubbot.formats import open_formats, put_in_place
from hubbot.formats.costs import costs_of
from hubbot.formats.foreign import artefact_names, read_artefact
from hubbot.formats.names import parse_variants
from hubbot.formats.protocol import VariantFiles
from hubbot.machine import Machine, measure_machine
from hubbot.model import ModelFacts, check_finite, part_layout, read_facts, unpickle
from hubbot.planning.plan import Plan, check_architecture, device_elsewhere, matrix, plan, require
from hubbot.planning.plan_view import as_json, as_table
from hubbot.release.gate import PROBE, tokenizer_digest
from hubbot.settings import Settings
from hubbot.sweep.references import References
from hubbot.sweep.walk import SweepInput, SweepResult, sweep
from hubbot.sweep.windows import Windows, calibration_windows, evaluation_windows, load_tokenizer, overlap

__all__ = ["describe", "evaluate", "make", "settle_device", "survey"]

T = TypeVar("T")


def settle_device(name: str) -> str:
    """`auto` becomes the first GPU where there is one."""
    return ("cuda:0" if torch.cuda.is_available() else "cpu") if name == "auto" else name


# --- the plan ---------------------------------------------------------------------------------------


def survey(argument: dict[str, Any]) -> dict[str, Any]:
    """Plan a job from a snapshot, whole or of headers alone.

    argument: source, settings, work, out, show (`table`, `json` or nothing is printed), refuse, elsewhere (the
    budgets describe the machine, not this one).
    Returns `plan`: plan_view.as_json and the job matrix. Raises the plan's first refusal where `refuse` is set.
    """
    source, settings, work = _job(argument)
    facts = _facts(source, settings, work)
    variants = parse_variants(settings.variants)
    check_architecture(facts, variants)
    elsewhere = bool(argument.get("elsewhere"))
    device = device_elsewhere(settings) if elsewhere else settle_device(settings.device)
    found = plan(
        source,
        facts,
        variants,
        settings,
        _machine(work, Path(argument["out"]), device),
        costs_of(variants, _described(source, facts), facts, work / "plan", settings),
        device=device,
        elsewhere=elsewhere,
    )
    _show(found, str(argument.get("show", "")))
    if argument.get("refuse"):
        require(found)
    return {"plan": {**as_json(found), "matrix": matrix(found)}}


def _machine(work: Path, out: Path, device: str) -> Machine:
    """This machine; what a killed run has left counts as free disk, for it is gone on with or makes room."""
    there = [path for sweep in work.glob("sweep-*") for path in put_in_place(sweep / "files", out)]
    machine = measure_machine(work, device, ours=work)
    return replace(machine, disk_free=machine.disk_free + sum(path.stat().st_blocks * 512 for path in there))


def describe(argument: dict[str, Any]) -> dict[str, Any]:
    """The source with what its files say about it. argument: source, settings, work."""
    source, settings, work = _job(argument)
    return asdict(_described(source, _facts(source, settings, work)))


def _show(found: Plan, how: str) -> None:
    if how == "table":
        Console().print(as_table(found))


# --- the sweep --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Calibration and evaluation text as the parent fetched them: jsonl files and their provenance."""

    calibration: Path | None
    calibration_name: str
    calibration_revision: str | None
    evaluation: Path | None
    evaluation_name: str
    evaluation_revision: str | None
    calibration_sha256: str | None = None
    evaluation_sha256: str | None = None


def make(argument: dict[str, Any]) -> dict[str, Any]:
    """One sweep: make and measure variants.

    argument: source, settings, work, out, variants (names), texts (Texts).
    Returns what the record needs: calibration, evaluation, base, variants, timings, references.
    """
    source, settings, work = _job(argument)
    out, variants = Path(argument["out"]), parse_variants(argument["variants"])
    texts = _as(Texts, argument["texts"])
    device = torch.device(settle_device(settings.device))
    facts = _facts(source, settings, work)
    timings: dict[str, float] = {}
    start = time.monotonic()
    check_finite(facts.folder, facts)
    timings["check weights"] = time.monotonic() - start
    calibration, evaluation = _windows(texts, facts, settings)
    text = _calibration_record(texts, calibration, evaluation, settings)
    formats = open_formats(
        variants=variants,
        source=source,
        facts=facts,
        work=work / "files",
        out=out,
        settings=settings,
        calibration=text,
        decoded=evaluation is not None,
    )
    references = References(evaluation) if evaluation else None
    task = SweepInput(
        folder=facts.folder,
        files={name: info.file for name, info in facts.tensors.items()},
        parts=part_layout(facts),
        calibration=calibration,
        evaluation=evaluation,
        work=work,
        device=device,
        references=references,
    )
    result = _swept(task, formats)
    saved = references.save(work / "references") if references else {}
    tokenizer = load_tokenizer(facts.folder)
    return {
        "calibration": asdict(text) if text else None,
        "evaluation": asdict(_evaluation_record(texts, evaluation, settings)) if evaluation else None,
        "base": asdict(result.base) if result.base else None,
        "variants": [
            *(_outcome(name, made, result, facts) for name, made in result.files.items()),
            *({"name": name, "paths": [], "status": "failed", "reason": why} for name, why in result.failed.items()),
        ],
        "timings": timings | result.seconds,
        "references": {name: str(path) for name, path in saved.items()},
        "chat_template": facts.chat_template,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "tokenizer": tokenizer_digest(tokenizer(PROBE, add_special_tokens=False)["input_ids"]),
    }


def _swept(task: SweepInput, formats: Any) -> SweepResult:
    total = len(task.parts)
    names = ", ".join(variant.name for family in formats for variant in family.variants)
    with log.progress(f"sweep of {names}", total, "parts") as advance:
        done = 0

        def report(_: str, number: int, __: int) -> None:
            nonlocal done
            advance(number - done)
            done = number

        return sweep(task, formats, report)


def _outcome(name: str, made: VariantFiles, result: SweepResult, facts: ModelFacts) -> dict[str, Any]:
    score: Score | None = result.scores.get(name)
    return {
        "name": name,
        "paths": [str(path) for path in made.paths],
        "bits_per_weight": 8 * made.weight_bytes / facts.parameters,
        "notes": list(made.notes),
        "layer_errors": {**made.layer_errors, **result.layer_errors.get(name, {})},
        "score": asdict(score) if score else None,
        "seconds": result.seconds.get(name),
    }


# --- artefacts made elsewhere ---------------------------------------------------------------------------


def evaluate(argument: dict[str, Any]) -> dict[str, Any]:
    """Measure finished artefacts against their base model.

    argument: source (the base), settings, work, paths (absolute, distinct), texts. Returns evaluation, base, and the scores by name.
    """
    source, settings, work = _job(argument)
    facts = _facts(source, settings, work)
    check_finite(facts.folder, facts)
    names = artefact_names([Path(path) for path in argument["paths"]])
    artefacts = [read_artefact(path, facts, name) for path, name in names.items()]
    texts = _as(Texts, argument["texts"])
    _, evaluation = _windows(replace(texts, calibration=None), facts, settings)
    if evaluation is None:
        msg = "There is no evaluation text to measure on. Name one with --evaluation."
        raise BadText(msg)
    task = SweepInput(
        folder=facts.folder,
        files={name: info.file for name, info in facts.tensors.items()},
        parts=part_layout(facts),
        calibration=None,
        evaluation=evaluation,
        work=work,
        device=torch.device(settle_device(settings.device)),
    )
    result = _swept(task, artefacts)
    return {
        "evaluation": asdict(_evaluation_record(texts, evaluation, settings)),
        "base": asdict(result.base) if result.base else None,
        "scores": {name: asdict(score) for name, score in result.scores.items()},
    }


# --- windows ------------------------------------------------------------------------------------------


def _windows(texts: Texts, facts: ModelFacts, settings: Settings) -> tuple[Windows | None, Windows | None]:
    tokenizer = load_tokenizer(facts.folder)
    limit = facts.context_length or 2**31
    calibration = evaluation = None
    if texts.calibration:
        calibration = calibration_windows(
            texts.calibration,
            tokenizer,
            samples=settings.calibration.samples,
            length=min(settings.calibration.length, limit),
            seed=settings.calibration.seed,
            vocab=facts.vocab_size,
        )
    if texts.evaluation:
        evaluation = evaluation_windows(
            texts.evaluation,
            tokenizer,
            length=min(settings.evaluation.context, limit),
            stride=settings.evaluation.stride,
            limit=settings.evaluation.windows,
            vocab=facts.vocab_size,
        )
    return calibration, evaluation


def _calibration_record(
    texts: Texts, calibration: Windows | None, evaluation: Windows | None, settings: Settings
) -> TextRecord | None:
    """The calibration as the record has it. Raises BadText where it overlaps the evaluation, unless forced."""
    if calibration is None:
        return None
    shared = overlap(calibration, evaluation) if evaluation else 0
    same = texts.evaluation is not None and texts.calibration_name == texts.evaluation_name
    if (shared or same) and not settings.force:
        found = f"{shared} of {calibration.count} calibration windows" if shared else "The same dataset and split"
        msg = (
            f"{found} stand in the evaluation text ({texts.evaluation_name}): a variant calibrated on the text that "
            "it is measured on looks better than it is. Name another calibration or evaluation text; "
            "--force goes on and says so in the card."
        )
        raise BadText(msg)
    return TextRecord(
        dataset=texts.calibration_name,
        revision=texts.calibration_revision,
        sha256=calibration.sha256,
        windows=calibration.count,
        length=calibration.length,
        seed=settings.calibration.seed,
        overlap_forced=bool(shared or same),
        text_sha256=texts.calibration_sha256,
    )


def _evaluation_record(texts: Texts, evaluation: Windows, settings: Settings) -> TextRecord:
    return TextRecord(
        dataset=texts.evaluation_name,
        revision=texts.evaluation_revision,
        sha256=evaluation.sha256,
        windows=evaluation.count,
        length=evaluation.length,
        stride=settings.evaluation.stride or evaluation.length,
        text_sha256=texts.evaluation_sha256,
    )


# --- arguments --------------------------------------------------------------------------------------


def _job(argument: dict[str, Any]) -> tuple[Source, Settings, Path]:
    return _as(Source, argument["source"]), Settings.model_validate(argument["settings"]), Path(argument["work"])


def _as(kind: type[T], values: Any) -> T:
    return TypeAdapter(kind).validate_python(values)


def _facts(source: Source, settings: Settings, work: Path) -> ModelFacts:
    """What the snapshot holds; a pickle-only one, where that is allowed, is turned into safetensors first."""
    facts = read_facts(Path(source.folder), allow_pickle=settings.allow_pickle)
    if not any(info.file.endswith(".safetensors") for info in facts.tensors.values()):
        unpickle(facts.folder, work / "unpickled")
        facts = read_facts(work / "unpickled")
    return facts


def _described(source: Source, facts: ModelFacts) -> Source:
    """The source with what its own files say; the Hub's word goes first."""
    return replace(
        source,
        license=source.license or facts.license,
        license_name=source.license_name or facts.license_name,
        license_link=source.license_link or facts.license_link,
        gated=source.gated or facts.gated,
        architecture=facts.architecture,
        parameters=facts.parameters,
        language=source.language or facts.language,
        pipeline_tag=source.pipeline_tag or facts.pipeline_tag,
        tags=source.tags or facts.tags,
        context_length=facts.context_length,
        kv_bytes_per_token=facts.kv_bytes_per_token,
    )
