"""The language of a GitHub runner: workflow commands in the log, files for outputs and the summary.

Everything that a job prints is read by the runner for commands, also a model's own text. So the runner
is told to stop reading at once, and each command of ours opens the door for its own line alone, with a
word that nobody else knows.

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubbot.log.screen import screen
from hubbot.log.visible import visible

__all__ = ["SUMMARY_LIMIT", "append_summary", "command", "guarded", "set_output"]

SUMMARY_LIMIT = 1024 * 1024  # bytes; GitHub drops a larger summary whole
_LONGEST = 2500  # bytes of a message: one write of a whole command stays under a pipe's 4096 bytes, unmixed

_FENCE = re.compile(r"^ {0,3}(`{3,}(?=[^`\n]*$)|~{3,})(.*)$", re.MULTILINE)

_resume: list[str] = []  # the words that end `stop-commands`, innermost last


def _data(text: str, room: int = _LONGEST) -> str:
    escaped = visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    whole = escaped.encode(errors="replace")[:room].decode(errors="ignore")
    return re.sub("%[0-9A-F]?$", "", whole)  # an escape that was cut in two


def _property(text: str) -> str:
    return _data(text, 300).replace(":", "%3A").replace(",", "%2C")


def command(name: str, message: str = "", **properties: str | int) -> None:
    """Print one workflow command, such as `error` or `group`."""
    told = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items())
    line = f"::{name}{' ' if told else ''}{told}::{_data(message)}\n"
    if _resume:
        word = _resume[-1]
        line = f"::{word}::\n{line}::stop-commands::{word}\n"
    screen().write(line)
    screen().flush()


@contextmanager
def guarded() -> Iterator[None]:
    """Inside, the runner obeys `command` alone, whatever else is printed, by child processes too."""
    word = f"resume-{secrets.token_hex(16)}"
    command("stop-commands", word)
    _resume.append(word)
    try:
        yield
    finally:
        _resume.pop()
        command(word)


def set_output(file: Path, name: str, value: str) -> None:
    """Append one output; a value cannot end it early, for the delimiter is drawn anew and looked for in it."""
    delimiter = f"end-{secrets.token_hex(16)}"
    while delimiter in value or delimiter in name:
        delimiter = f"end-{secrets.token_hex(16)}"
    with file.open("a", encoding="utf-8") as stream:
        stream.write(f"{name}<<{delimiter}\n{value}\n{delimiter}\n")


def append_summary(file: Path, markdown: str) -> None:
    """Append to the step's summary; where it would pass GitHub's limit, cut at the end of a line, no block left open."""
    room = SUMMARY_LIMIT - 1024 - (file.stat().st_size if file.exists() else 0)
    data = markdown.encode("utf-8", errors="replace")
    if len(data) > room:
        note = "\n\n*The summary was longer than GitHub shows; hubbot.json and report.html have all of it.*\n"
        kept = data[: max(room - len(note), 0)].rpartition(b"\n")[0]
        data = kept + _end_of_block(kept.decode(errors="replace")).encode() + note.encode()
    with file.open("ab") as stream:
        stream.write(data.rstrip(b"\n") + b"\n")


def _end_of_block(markdown: str) -> str:
    """The line that closes a block of code which the text leaves open; nothing where none is open."""
    fence = ""
    for match in _FENCE.finditer(markdown):
        if not fence:
            fence = match[1]
        elif match[1].startswith(fence) and not match[2].strip():
            fence = ""
    return f"\n{fence}" if fence else ""
