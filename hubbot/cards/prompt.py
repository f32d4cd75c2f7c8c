"""The prompt format that a chat template gives, rendered in jinja's sandbox in a child process.

A template is a program by a stranger. The sandbox keeps it from Python's inner attributes; the child's
limits on time, memory and output keep it from looping or filling the machine. The child has an empty
environment, no network and no files but Python's own (`hubbot.cards.template`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hubbot.confine.ask import NoAnswer, ask

__all__ = ["PromptFormat", "Written", "conversations_written", "prompt_format"]

MAX_TEMPLATE = 262_144  # characters; the longest ones in use have about 30,000
MAX_RENDERED = 6_000  # characters; a format of two messages needs a few hundred
SECONDS = 2
SECONDS_OF_MANY = 60  # of conversations for the evaluation
MEMORY = 512 * 2**20  # bytes of address space

# Python shut off from everything around it (-I) has to be told where hubbot lies.
_START = "import sys; sys.path.insert(0, sys.argv[1]); from hubbot.cards.template import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFormat:
    """text: the rendered format, or None with the reason why it is not shown."""

    text: str | None = None
    reason: str | None = None


def prompt_format(template: str, special_tokens: dict[str, str], *, date: str = "") -> PromptFormat:
    """What the template makes of a system prompt and a user's prompt, with the start of the answer.

    date: ISO 8601; templates that write the date get this one, so the same record gives the same card.
    Never raises for anything that a template does.
    """
    if len(template) > MAX_TEMPLATE:
        return PromptFormat(
            reason=f"the chat template has {len(template):,} characters; up to {MAX_TEMPLATE:,} are rendered"
        )
    return _in_child(json.dumps({"template": template, "tokens": special_tokens, "date": date}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Conversations as a template writes them; those that it refuses are left out, and the first one's reason is kept."""

    texts: tuple[str, ...] = ()
    reason: str | None = None


def conversations_written(
    template: str, special_tokens: Mapping[str, str], conversations: Sequence[Sequence[Mapping[str, str]]], *, date: str
) -> Written:
    """Every conversation by itself, complete. Never raises for anything that a template does."""
    order = {"template": template, "tokens": special_tokens, "date": date, "conversations": conversations}
    try:
        said = _asked(json.dumps(order), seconds=SECONDS_OF_MANY)
    except NoAnswer as error:
        memory = "" if error.late else f" or {MEMORY >> 20} MiB"
        return Written(reason=f"rendering the chat template took more than {SECONDS_OF_MANY} seconds{memory}")
    answer = json.loads(said)
    return Written(texts=tuple(answer["texts"]), reason=answer["reason"])


@lru_cache(maxsize=8)  # a run writes several cards with the same template
def _in_child(order: str) -> PromptFormat:
    try:
        said = _asked(order, seconds=SECONDS)
    except NoAnswer as error:
        memory = "" if error.late else f" or {MEMORY >> 20} MiB"
        return PromptFormat(reason=f"rendering the chat template took more than {SECONDS} seconds{memory}")
    answer: dict[str, str | None] = json.loads(said)
    return PromptFormat(**answer)


def _asked(order: str, *, seconds: int) -> bytes:
    """What the child answers. seconds: of processor time, the real limit; a sleeping child gets a few more."""
    command = [sys.executable, "-I", "-c", _START, str(Path(__file__).resolve().parents[2])]
    environment = {"PYTHONIOENCODING": "utf-8"}
    return ask(command, order.encode("utf-8", "replace"), seconds=seconds + 6, environment=environment)
