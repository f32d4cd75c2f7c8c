"""The doctor's findings as a table, with what the Hub says of the token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hubbot.errors import HubbotError
from hubbot.hub.rights import token_rights
from hubbot.machine.doctor import Finding, Status, examine
from hubbot.settings import Settings

__all__ = ["show"]

_STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}


def show(settings: Settings, *, namespaces: Sequence[str], token: str | None, endpoint: str | None) -> bool:
    """Print every finding; the Hub is asked only about namespaces that are named or configured.

    Returns whether nothing failed.
    """
    asked = [*namespaces, *([settings.publish.namespace] if settings.publish.namespace else [])]
    findings = [*examine(settings.out, device=settings.device, token=bool(token))]
    findings += _rights(token, list(dict.fromkeys(asked)), endpoint)
    Console().print(_table(findings))
    return all(finding.status is not Status.FAIL for finding in findings)


def _rights(token: str | None, namespaces: Sequence[str], endpoint: str | None) -> Iterator[Finding]:
    if not namespaces or not token:
        return
    try:
        rights = token_rights(token, namespaces, endpoint=endpoint)
    except HubbotError as error:
        yield Finding(name="token on the Hub", status=Status.FAIL, found=str(error))
        return
    for name, right in rights.namespaces.items():
        enough = right.create_and_write or right.pull_requests
        may = "create and write repos" if right.create_and_write else "open pull requests"
        yield Finding(
            name=f"token in {name}",
            status=Status.OK if enough else Status.FAIL,
            found=f"{rights.user} may {may}. {right.why}" if enough else right.why,
            remedy="" if enough else "Use a token with write access to this namespace.",
        )
    if rights.too_much:
        remedy = "A fine-grained token for the target repos alone is enough."
        found = f"It may more than hubbot needs: {', '.join(rights.too_much)}"
        yield Finding(name="token", status=Status.WARN, found=found, remedy=remedy)


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "what", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        mark = Text(str(finding.status), style=_STYLES[finding.status])
        table.add_row(mark, Text(finding.name), Text(finding.found), Text(finding.remedy))
    return table
