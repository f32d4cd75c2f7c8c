"""The prompt format that a chat template gives, rendered in jinja's sandbox in a child process.

A template is a program by a stranger. The sandbox keeps it from Python's inner attributes; the child's
limits on time, memory and output keep it from looping or filling the machine. The child has an empty
environment.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["PromptFormat", "prompt_format"]

MAX_TEMPLATE = 262_144  # characters; the longest ones in use have about 30,000
MAX_RENDERED = 6_000  # characters; a format of two messages needs a few hundred
SECONDS = 2
_MEMORY = 512 * 2**20  # bytes of address space

_SYSTEM = {"role": "system", "content": "{system prompt}"}
_USER = {"role": "user", "content": "{prompt}"}


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


@lru_cache(maxsize=8)  # a run writes several cards with the same template
def _in_child(order: str) -> PromptFormat:
    try:
        child = subprocess.run(
            [sys.executable, "-I", __file__],  # the file itself: it needs nothing of hubbot
            input=order.encode("utf-8", "replace"),
            capture_output=True,
            timeout=SECONDS + 6,  # the limit on processor time is the real one; this is for a sleeping child
            env={"PYTHONIOENCODING": "utf-8"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return PromptFormat(reason=f"rendering the chat template took more than {SECONDS} seconds")
    if child.returncode != 0:
        return PromptFormat(
            reason=f"rendering the chat template took more than {SECONDS} seconds or {_MEMORY >> 20} MiB"
        )
    answer: dict[str, str | None] = json.loads(child.stdout)
    return PromptFormat(**answer)


def _child() -> None:
    order = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    json.dump(_render(order["template"], order["tokens"], order["date"]), sys.stdout)


def _render(template: str, tokens: dict[str, str], date: str) -> dict[str, str | None]:
    """The first of: with a system prompt, without one. Templates may refuse a system prompt."""
    reason = "it shows no place for the prompt"
    for messages in ([_SYSTEM, _USER], [_USER]):
        try:
            text = "".join(
                _pieces(
                    _environment(date)
                    .from_string(template)
                    .generate(messages=messages, add_generation_prompt=True, tools=None, documents=None, **tokens)
                )
            )
        except MemoryError:
            return {"reason": f"rendering the chat template took more than {_MEMORY >> 20} MiB"}
        except _TooLong:
            return {"reason": f"the chat template renders to more than {MAX_RENDERED:,} characters"}
        except Exception as error:  # noqa: BLE001 - a template can raise anything; the reason goes into the card
            reason = f"{type(error).__name__}: {error}"
            continue
        if all(message["content"] in text for message in messages):
            return {"text": text}
    return {"reason": f"the chat template cannot be rendered ({reason[:300]})"}


class _TooLong(Exception):
    pass


def _pieces(stream: Any) -> Any:
    length = 0
    for piece in stream:
        length += len(piece)
        if length > MAX_RENDERED:
            raise _TooLong
        yield piece


class _Generation(Extension):
    """{% generation %} … {% endgeneration %} marks the assistant's words for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(date: str) -> ImmutableSandboxedEnvironment:
    """What transformers gives to chat templates: trimmed blocks, loop controls, three functions."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda layout: date[:10] if layout else ""
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(str(message))


if __name__ == "__main__":
    _child()
