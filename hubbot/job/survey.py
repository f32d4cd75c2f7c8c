"""What a model's own files say, asked of a confined child once, and the plan that follows from it on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from hubbot.child.messages import SURVEY, Description, SurveyAnswer, SurveyQuestion
from hubbot.confine.isolate import Call
from hubbot.domain import Source
from hubbot.errors import HubbotError, Unsupported
from hubbot.formats import put_in_place
from hubbot.formats.names import names_made, parse_variants
from hubbot.hub.read.datasets import size_of_local
from hubbot.job import kept
from hubbot.job.basis import basis
from hubbot.machine import Machine, measure_machine
from hubbot.planning.needs import with_text
from hubbot.planning.plan import Plan, device_elsewhere, plan
from hubbot.settings import Settings

__all__ = ["Survey", "refuse_others", "survey"]

_SECONDS = 1_800.0  # that nothing honest takes
_READING = 2**30  # bytes: a survey of headers and a tokenizer keeps to half of it
_NOT_TOLD = "revision out benchmark strict check gate licence budget watch serve job".split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    description: Description
    plan: Plan


def survey(source: Source, settings: Settings, call: Call, *, work: Path, out: Path, elsewhere: bool = False) -> Survey:
    """What a run would make and need. Asks the child, or takes what it has answered before where nothing has changed since.

    source: whole, or of headers alone. elsewhere: the budgets describe the machine that will do the work; it is not this one.
    """
    answer = _answer(source, settings, call, work=work, out=out)
    refuse_others(answer.variants, asked=names_made(settings.variants, answer.variants))
    refuse_others([*answer.prices, *answer.refused], asked=answer.variants)
    device = device_elsewhere(settings) if elsewhere else answer.device
    found = plan(
        answer.description.of(source),
        answer.shapes,
        parse_variants(",".join(answer.variants)),
        with_text(settings, size_of_local(settings.evaluation), answer.shapes.context_length),
        machine(work, out, settings.device if device.startswith("cuda") else device),
        {name: price.cost for name, price in answer.prices.items()}
        | {name: _unsupported(why) for name, why in answer.refused.items()},
        device=device,
        elsewhere=elsewhere,
        notes=answer.notes,
    )
    return Survey(description=answer.description, plan=found)


def _answer(source: Source, settings: Settings, call: Call, *, work: Path, out: Path) -> SurveyAnswer:
    """The child's answer. Its folder is a new one, so that it sees nothing of what earlier children have left."""
    asked, source = _asked(settings), replace(source, files=dict.fromkeys(source.files, ""))
    found_on = None if kept.lies_in(out) else basis(source, asked)
    if found_on and (known := kept.read(found_on)):
        return known
    with TemporaryDirectory(dir=work, prefix="survey-") as folder:
        question = SurveyQuestion(source=source, settings=asked, work=Path(folder))
        answer = call(
            SURVEY,
            question,
            work=question.work,
            writable=(),
            readable=[Path(source.folder)],
            seconds=_SECONDS,
            memory=_memory(settings),
        )
    told = answer.value
    if found_on and told.lasting and answer.walls.complete and found_on == basis(source, asked):
        kept.write(found_on, told)
    return told


def _asked(settings: Settings) -> Settings:
    """The settings that a survey goes by; of the others, as of digests, it is told nothing, so that they make no other question."""
    default = Settings()
    return settings.model_copy(
        update={
            **{name: getattr(default, name) for name in _NOT_TOLD},
            "publish": default.publish.model_copy(update={"quantized_by": settings.publish.maker}),
        }
    )


def machine(work: Path, out: Path, device: str) -> Machine:
    """This machine; what a killed run has left counts as free disk, for it is gone on with or makes room."""
    folders = [folder for sweep in work.glob("sweep-*") for folder in (sweep, *sweep.glob("rank-*"))]
    there = [path for folder in folders for path in put_in_place(folder / "files", out)]
    found = measure_machine(work, device, ours=work)
    return replace(found, disk_free=found.disk_free + sum(path.stat().st_blocks * 512 for path in there))


def _unsupported(why: HubbotError) -> Unsupported:
    return why if isinstance(why, Unsupported) else Unsupported(str(why))


def _memory(settings: Settings) -> int | None:
    """Bytes that a survey is meant to keep to: little before anything of a stranger's was judged, but for whole pickles."""
    return settings.budget.ram if settings.allow_pickle else min(settings.budget.ram or _READING, _READING)


def refuse_others(answered: Sequence[str], *, asked: Sequence[str]) -> None:
    """Raise HubbotError for an answer of the confined child about variants that it was not asked for, or not all of them."""
    if sorted(answered) != sorted(asked):
        msg = (
            f"The confined process was asked for {', '.join(asked)} and answered for {', '.join(answered)[:500]}. "
            "It reads the model's files: if they come from somebody whom you do not trust, use nothing of this run; "
            "if not, please report a defect of hubbot."
        )
        raise HubbotError(msg)
