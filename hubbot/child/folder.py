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

__all__ = ["ReadQuestion", "read_folder"]

_PATIENCE = 3600.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadQuestion:
    """What a family's `read` is asked of a variant."""

    family: Family
    paths: tuple[Path, ...]
    reference: Path | None
    prompts: tuple[tuple[int, ...], ...]
    new_tokens: int
    chat: Chat | None

    def read(self, device: str) -> Reading:
        """What the family's runtime makes of the variant there."""
        return FAMILIES[self.family].read(
            self.paths,
            self.reference,
            prompts=self.prompts,
            new_tokens=self.new_tokens,
            chat=self.chat,
            device=device,
        )


def read_folder(question: ReadQuestion, device: str) -> Reading:
    """The same of a folder, in a process that sees no other card; its death too."""
    command = [sys.executable, "-P", "-m", "hubbot.child.folder", device.partition(":")[0]]
    environment = allowed() | no_other(device)
    try:
        return decode(Reading, ask(command, encode(ReadQuestion, question), seconds=_PATIENCE, environment=environment))
    except NoAnswer as error:
        runtime = f"transformers {version('transformers')}"
        return Reading(check=LoadCheck(runtime=runtime, loaded=False, error=f"its process {error}"))


def main() -> None:
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    question = decode(ReadQuestion, sys.stdin.buffer.read())
    reading = question.read("cuda:0" if sys.argv[1] == "cuda" else "cpu")
    with answer:
        answer.write(encode(Reading, reading))


if __name__ == "__main__":
    main()
