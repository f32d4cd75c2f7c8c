"""Reads one variant's folder in a process of its own: on cards, where several are read at the same time.

    python -P -m hubbot.child.folder DEVICE <question.json >reading.json

What the runtime prints goes to standard error. A process that dies takes no other variant with it.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from hubbot.confine.ask import NoAnswer, ask
from hubbot.confine.environment import allowed
from hubbot.confine.stage import decode, encode
from hubbot.domain import Family, LoadCheck
from hubbot.formats import FAMILIES
from hubbot.formats.protocol import Reading
from hubbot.machine.nvidia import no_other
from hubbot.model.chat import Chat

__all__ = ["FolderQuestion", "read_folder"]

_PATIENCE = 3600.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderQuestion:
    """What a family's `read` is asked."""

    family: Family
    paths: tuple[Path, ...]
    reference: Path | None
    prompts: tuple[tuple[int, ...], ...]
    new_tokens: int
    chat: Chat | None


def read_folder(question: FolderQuestion, device: str) -> Reading:
    """What the family's runtime makes of the folder there, in a process that sees no other card; its death too."""
    command = [sys.executable, "-P", "-m", "hubbot.child.folder", device.partition(":")[0]]
    environment = allowed() | no_other(device)
    try:
        return decode(
            Reading, ask(command, encode(FolderQuestion, question), seconds=_PATIENCE, environment=environment)
        )
    except NoAnswer as error:
        runtime = f"transformers {version('transformers')}"
        return Reading(check=LoadCheck(runtime=runtime, loaded=False, error=f"its process {error}"))


def main() -> None:
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    asked = decode(FolderQuestion, sys.stdin.buffer.read())
    reading = FAMILIES[asked.family].read(
        asked.paths,
        asked.reference,
        prompts=asked.prompts,
        new_tokens=asked.new_tokens,
        chat=asked.chat,
        device="cuda:0" if sys.argv[1] == "cuda" else "cpu",
    )
    with answer:
        answer.write(encode(Reading, reading))


if __name__ == "__main__":
    main()
