"""The action: inputs in, `hubbot` as on a command line, then outputs, annotations and a summary.

The same entry point serves `uses:` (a docker action), a job container (`run: hubbot-action` with the
inputs as `INPUT_…` variables) and, for trying it, any shell. It exits as the command line does; see
`hubbot.errors`.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path

from hubbot import log
from hubbot.action.inputs import BadInput, Inputs, read_inputs
from hubbot.action.outcome import Outcome, SomeRefused
from hubbot.confine.walls import hide_memory
from hubbot.environment import PROCESS
from hubbot.errors import HubbotError
from hubbot.log import github
from hubbot.log.redact import redact

__all__ = ["Work", "act", "main", "outputs"]

# What a step may not hand to the programs that it starts: the token, and the keys to GitHub's own services.
_SECRETS = (
    "INPUT_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "GITHUB_TOKEN",
    "ACTIONS_RUNTIME_TOKEN",
)


Work = Callable[[Inputs], Outcome]  # does what the inputs ask for


def main() -> None:
    """Entry point of the container and of `hubbot-action`."""
    from hubbot.action.work import work

    hide_memory()
    sys.exit(act(PROCESS, work))


def act(environ: MutableMapping[str, str], work: Work) -> int:
    """One run of the action; returns the exit code.

    environ loses its secrets, so that no program started from here inherits them.
    """
    token = environ.get("INPUT_TOKEN", "").strip() or environ.get("HF_TOKEN", "").strip()
    log.add_mask(token)
    workspace = Path(environ.get("GITHUB_WORKSPACE", "."))
    with github.guarded():
        try:
            inputs = read_inputs(environ, workspace)
            for name in _SECRETS:
                environ.pop(name, None)
            outcome, code = _worked(work, inputs)
        except HubbotError as error:
            outcome, code = _stopped(error, str(error), token), error.exit_code
        except Exception as error:  # noqa: BLE001 - a step that fails still owes its outputs and a reason
            log.say(redact("".join(traceback.format_exception(error)), token))
            outcome, code = _stopped(error, _unexpected(error), token), HubbotError.exit_code
        _report(outcome, environ, workspace)
    return code


def _worked(work: Work, inputs: Inputs) -> tuple[Outcome, int]:
    try:
        outcome, code = work(inputs), 0
    except SomeRefused as error:
        outcome, code = error.outcome, error.exit_code if inputs.fail_on_refused else 0
    for variant in outcome.record.variants if outcome.record else ():
        if not variant.passed:
            tell = log.error if code else log.warning
            tell(redact(variant.reason or "no reason given", inputs.token), title=f"{variant.name} {variant.status}")
    return outcome, code


def _stopped(error: Exception, message: str, token: str | None) -> Outcome:
    """Annotate an error; what is left of the step is its reason in the summary."""
    title = f"Input {error.name}" if isinstance(error, BadInput) else "hubbot"
    log.error(redact(message, token), title=title)
    return Outcome(summary=f"### hubbot stopped\n\n{_quoted(redact(message, token))}\n")


def _unexpected(error: Exception) -> str:
    return (
        f"hubbot did not expect this: {type(error).__name__}: {error}. The step's log has the traceback. "
        "Mend what it names, such as a full disk, and run the step again; if nothing is amiss there, report it."
    )


def _report(outcome: Outcome, environ: Mapping[str, str], workspace: Path) -> None:
    """Write the outputs and the step's summary to the files that the runner named, if it named any."""
    if file := environ.get("GITHUB_OUTPUT"):
        for name, value in outputs(outcome, workspace).items():
            github.set_output(Path(file), name, value)
    if outcome.summary and (file := environ.get("GITHUB_STEP_SUMMARY")):
        github.append_summary(Path(file), outcome.summary)


def outputs(outcome: Outcome, workspace: Path) -> dict[str, str]:
    """The outputs that action.yml declares, all of them, empty where there is nothing to say.

    workspace: what the record's path is told from, for the next step may see it under another name.
    """
    variants = outcome.record.variants if outcome.record else ()
    passed = [one.name for one in variants if one.passed]
    refused = [one.name for one in variants if not one.passed]
    counted = f"{len(passed)} passed, {len(refused)} refused, {len(outcome.published)} published"
    return {
        "record": _seen_from(workspace, outcome.record_path),
        "matrix": json.dumps(outcome.matrix, separators=(",", ":")) if outcome.matrix is not None else "",
        "published": json.dumps(outcome.published),
        "pull-requests": json.dumps(outcome.pull_requests),
        "passed": json.dumps(passed),
        "refused": json.dumps(refused),
        "summary": counted if outcome.record else "",
    }


def _seen_from(workspace: Path, path: Path | None) -> str:
    root = workspace.resolve()
    return str(path.relative_to(root) if path and path.is_relative_to(root) else path or "")


def _quoted(text: str) -> str:
    """An error in the summary as a block of code, which shows everything and obeys nothing."""
    fence = "`" * 3
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"
