"""What each command of the action does, and what it leaves for outputs and summary."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hubbot import log, pipeline
from hubbot.action.inputs import Inputs
from hubbot.action.step import Outcome, SomeRefused
from hubbot.cards.escape import code, inline
from hubbot.cards.summary import reasons, step_summary
from hubbot.domain import Record, Status
from hubbot.errors import BadRecord
from hubbot.hub.keyless import keyless_token
from hubbot.hub.release import Receipt
from hubbot.pipeline import Run
from hubbot.record import FILE_NAME, read_record

__all__ = ["work"]


def work(inputs: Inputs) -> Outcome:
    """Do what the inputs ask for. Raises SomeRefused after everything else is done."""
    job = Run(
        model=inputs.model,
        settings=inputs.settings,
        token=inputs.token or _identity(inputs),
        endpoint=os.environ.get("HF_ENDPOINT") or None,
        command=f"hubbot {inputs.command} {inputs.model}",
    )
    match inputs.command:
        case "plan":
            return _planned(job)
        case "publish":
            return _published(job)
        case _:
            return _made(job)


def _identity(inputs: Inputs) -> str | None:
    """A token from a trusted publisher, where one is named and something will be published."""
    resource = os.environ.get("HF_OIDC_RESOURCE", "").strip()
    if not resource or inputs.command == "plan" or inputs.settings.publish.mode == "none":
        return None
    token = keyless_token(resource, os.environ.get("HF_ENDPOINT") or None)
    log.mask(token)
    return token


def _planned(job: Run) -> Outcome:
    found = pipeline.plan(job, show="table")
    pipeline.require(found)
    return Outcome(matrix=found["matrix"], summary=plan_summary(found))


def _made(job: Run) -> Outcome:
    record = pipeline.run(job)
    return _judged([record], job.receipts, job.out / FILE_NAME)


def _published(job: Run) -> Outcome:
    """Publish what lies in the output folder, or in each of its folders where a matrix made it in parts."""
    parts = [path.parent for path in sorted([*job.out.glob(FILE_NAME), *job.out.glob(f"*/{FILE_NAME}")])]
    if not parts:
        msg = f"{job.out} holds no {FILE_NAME}, and none of its folders does. Run `command: run` with the same `out` first."
        raise BadRecord(msg)
    records: list[Record] = []
    for part in parts:
        here = replace(job, settings=job.settings.model_copy(update={"out": part}))
        records.append(pipeline.release_record(here, read_record(part / FILE_NAME)))
    return _judged(records, job.receipts, parts[0] / FILE_NAME)


def _judged(records: Sequence[Record], receipts: Iterable[Receipt], path: Path) -> Outcome:
    whole = replace(records[0], variants=tuple(variant for record in records for variant in record.variants))
    kept = list(receipts)
    waiting = {one.repo_id: one.pull_request_url for one in kept if one.pull_request_url}
    outcome = Outcome(
        record=whole,
        record_path=path,
        published=tuple(dict.fromkeys(one.url for one in kept if one.status in ("published", "unchanged"))),
        pull_requests=tuple(dict.fromkeys(waiting.values())),
        summary=step_summary(whole, pull_requests=waiting),
    )
    bad = [variant.name for variant in whole.variants if variant.status in (Status.REFUSED, Status.FAILED)]
    if bad:
        for line in reasons(whole):
            log.say(line)
        msg = f"{len(bad)} of {len(whole.variants)} variants did not pass: {', '.join(bad)}. Their reasons stand in hubbot.json and in the step's summary."
        raise SomeRefused(msg, outcome)
    return outcome


def plan_summary(found: Mapping[str, Any]) -> str:
    """A plan as Markdown for the step's summary."""
    rows = [
        f"| {code(one['name'])} | {one['file_bytes'] / 1e9:,.2f} GB | {one['bits_per_weight']:.2f} |"
        for one in found["variants"]
    ]
    needs = [
        f"| {name} | {found['need'][key] / 1e9:,.1f} GB | {found['budget'][key] / 1e9:,.1f} GB |"
        for name, key in (("disk", "disk"), ("RAM", "ram"), ("VRAM", "vram"))
        if found["need"][key]
    ]
    notes = [f"- {inline(note)}" for note in found["notes"]]
    return "\n".join(
        [
            f"## Plan for {inline(found['model'])}",
            "",
            "| variant | size | bits per weight |",
            "| --- | ---: | ---: |",
            *rows,
            "",
            f"{len(found['matrix']['include'])} jobs, each one walk over the model. Peak:",
            "",
            "| | needed | may be used |",
            "| --- | ---: | ---: |",
            *needs,
            "",
            *notes,
        ]
    )
