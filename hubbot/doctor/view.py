"""The doctor's findings as a table, with what the Hub says of the token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hubbot.doctor.examine import examine
from hubbot.doctor.finding import Finding, Status
from hubbot.errors import HubbotError
from hubbot.hub.client import Hub
from hubbot.hub.rights import Rights, token_rights
from hubbot.settings import Settings

__all__ = ["rights_findings", "show"]

_STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}


def show(settings: Settings, *, namespaces: Sequence[str], hub: Hub) -> bool:
    """Print every finding; the Hub is asked only about namespaces that are named or configured.

    Returns whether nothing failed.
    """
    asked = [*namespaces, *([settings.publish.namespace] if settings.publish.namespace else [])]
    findings = [*examine(settings.out, device=settings.device, token=bool(hub.token), vllm=settings.check.vllm)]
    findings += rights_findings(hub, list(dict.fromkeys(asked)), mode=settings.publish.mode)
    Console().print(_table(findings))
    return all(finding.status is not Status.FAIL for finding in findings)


def rights_findings(hub: Hub, namespaces: Sequence[str], *, mode: str) -> Iterator[Finding]:
    """What the token may do in each namespace, against what publishing with this mode (none, pr, main) needs there."""
    if not namespaces or not hub.token:
        return
    try:
        rights = token_rights(hub, namespaces)
    except HubbotError as error:
        yield Finding(name="token on the Hub", status=Status.FAIL, found=str(error))
        return
    for name, right in rights.namespaces.items():
        status, remedy = _judged(name, right, mode)
        yield Finding(
            name=f"token in {name}", status=status, found=f"{rights.user} {_may(right)}. {right.why}", remedy=remedy
        )
    if rights.too_much:
        remedy = "A fine-grained token for the target repos alone is enough."
        found = f"It may more than hubbot needs: {', '.join(rights.too_much)}"
        yield Finding(name="token", status=Status.WARN, found=found, remedy=remedy)


def _may(right: Rights) -> str:
    if right.create_and_write:
        return "may create and write repos"
    return "may open pull requests" if right.pull_requests else "may neither write nor open pull requests"


def _judged(name: str, right: Rights, mode: str) -> tuple[Status, str]:
    """The status and what to do."""
    if missing := right.missing(mode):
        instead = ", or publish with mode pr" if mode == "main" and right.pull_requests else ""
        needs = f"publish.mode {mode} needs {', '.join(missing)} on {name}, which the token lacks"
        return Status.FAIL, f"{needs}. Grant it to a fine-grained token of an account with that right{instead}."
    if mode == "pr" and not right.create_and_write:
        return (
            Status.WARN,
            f"A repo that is not there yet cannot be made: make it yourself, or grant repo.write on {name}.",
        )
    return Status.OK, ""


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = Text(str(finding.status), style=_STYLES[finding.status])
        table.add_row(mark, Text(finding.name), Text(finding.found), Text(finding.remedy))
    return table
