"""What each command of the action does, and what it leaves for outputs and summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hubbot import log
from hubbot.action.inputs import Inputs
from hubbot.action.outcome import Outcome, SomeRefused
from hubbot.action.parts import joined, keep_receipts, kept_receipts, lay_out, read_parts, tidy
from hubbot.cards.summary import reasons, step_summary
from hubbot.formats.names import names_made
from hubbot.hub.client import Hub, hub_of_environment
from hubbot.hub.keyless import keyless_token
from hubbot.hub.publish.after_merge import finish_merged
from hubbot.hub.publish.repo_release import Receipt
from hubbot.job import pipeline
from hubbot.job.pipeline import Finished, Run
from hubbot.planning.plan import matrix, require
from hubbot.planning.plan_view import as_markdown, as_table
from hubbot.record.file import FILE_NAME, read_record

__all__ = ["hub_of", "work"]


def work(inputs: Inputs) -> Outcome:
    """Do what the inputs ask for. Raises SomeRefused after everything else is done."""
    job = Run(
        model=inputs.model,
        settings=inputs.settings,
        hub=hub_of(inputs),
        command=f"hubbot {inputs.command} {inputs.model}",
    )
    match inputs.command:
        case "plan":
            return _planned(job, elsewhere=inputs.elsewhere)
        case "publish":
            return _published(job, inputs.parts)
        case _:
            return _made(job)


def hub_of(inputs: Inputs) -> Hub:
    """With the token given, or one from a trusted publisher where one is named and something will be published."""
    hub = replace(hub_of_environment(), token=inputs.token)
    if inputs.token or not inputs.oidc_resource:
        return hub
    if inputs.command == "plan" or inputs.settings.publish.mode == "none":
        return hub
    token = keyless_token(inputs.oidc_resource, hub)
    log.add_mask(token)
    return replace(hub, token=token)


def _planned(job: Run, *, elsewhere: bool) -> Outcome:
    found = pipeline.plan(job, elsewhere=elsewhere)
    Console().print(as_table(found))
    require(found)
    return Outcome(matrix=matrix(found), summary=as_markdown(found))


def _made(job: Run) -> Outcome:
    return _judged(pipeline.run(job), job.out / FILE_NAME)


def _published(job: Run, names: Sequence[str]) -> Outcome:
    """Publish what lies in the output folder: a whole run, or the named parts of a plan as one release."""
    if not names:
        return _judged(pipeline.release_record(job, read_record(job.out)), job.out / FILE_NAME)
    parts = read_parts(job.out, names)
    held = [variant.name for part in parts for variant in part.record.variants]
    record = joined(parts, names_made(job.settings.variants, held))
    publish = job.settings.publish
    if (told := kept_receipts(parts, job.out, record, publish)) is not None:
        log.say(f"{job.out} was published before; its weights are gone.")
        _finish(job, told)
        return _judged(Finished(record=read_record(job.out), receipts=told), job.out / FILE_NAME)
    lay_out(parts, record, job.out)
    published = pipeline.release_record(job, record)
    if publish.mode != "none":
        keep_receipts(job.out, record, publish, published.receipts)
        tidy(parts, job.out)
    return _judged(published, job.out / FILE_NAME)


def _finish(job: Run, receipts: Sequence[Receipt]) -> None:
    """Make the branches of pull requests that were merged since, from what lies on the Hub."""
    for one in receipts:
        if one.pull_request is not None:
            made = finish_merged(one.repo_id, job.hub)
            log.say(f"{one.repo_id}: {len(made)} branches made after its merge")


def _judged(finished: Finished, path: Path) -> Outcome:
    record, receipts = finished.record, finished.receipts
    waiting = {one.repo_id: one.pull_request_url for one in receipts if one.pull_request_url}
    outcome = Outcome(
        record=record,
        record_path=path,
        published=tuple(one.url for one in receipts if one.status in ("published", "unchanged")),
        pull_requests=tuple(waiting.values()),
        summary=step_summary(record, pull_requests=waiting),
    )
    bad = [variant.name for variant in record.variants if not variant.passed]
    if bad:
        for line in reasons(record):
            log.say(line)
        msg = f"{len(bad)} of {len(record.variants)} variants did not pass: {', '.join(bad)}. Their reasons stand in hubbot.json and in the step's summary."
        raise SomeRefused(msg, outcome)
    return outcome
