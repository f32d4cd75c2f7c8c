"""Renders a stranger's chat template: the program that `hubbot.cards.prompt` starts, with no environment.

It reads its order, then puts up walls and limits, then renders: no file but Python's own, no network, no memory nor
time beyond the bounds.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hubbot.cards.prompt import MAX_RENDERED, MEMORY, SECONDS, SECONDS_OF_MANY
from hubbot.confine.places import HUBBOT, python_places
from hubbot.confine.walls import Walls, raise_walls

__all__ = ["main", "shut_in"]

_SYSTEM = {"role": "system", "content": "{system prompt}"}
_USER = {"role": "user", "content": "{prompt}"}


def main() -> None:
    order = json.load(sys.stdin)
    many = order.get("conversations")
    shut_in(SECONDS if many is None else SECONDS_OF_MANY)
    given = order["template"], order["tokens"], order["date"]
    json.dump(_render(*given) if many is None else _write(*given, many), sys.stdout)


def shut_in(seconds: int = SECONDS) -> Walls:
    """Give up the network, every file but what Python imports, and all but a little time and memory."""
    built = raise_walls(home=Path("/nonexistent"), writable=(), readable=python_places(), listed=[HUBBOT.parent])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return built


def _render(template: str, tokens: dict[str, str], date: str) -> dict[str, str | None]:
    """The first of: with a system prompt, without one, both again in parts. Templates may refuse a system prompt."""
    reason = "it shows no place for the prompt"
    for messages, given in (
        (messages, form(messages)) for form in (list, _in_parts) for messages in ([_SYSTEM, _USER], [_USER])
    ):
        try:
            text = "".join(
                _pieces(
                    _environment(date)
                    .from_string(template)
                    .generate(messages=given, add_generation_prompt=True, tools=None, documents=None, **tokens)
                )
            )
        except MemoryError:
            return {"reason": f"rendering the chat template took more than {MEMORY >> 20} MiB"}
        except _TooLong:
            return {"reason": f"the chat template renders to more than {MAX_RENDERED:,} characters"}
        except Exception as error:  # noqa: BLE001 - a template can raise anything; the reason goes into the card
            reason = f"{type(error).__name__}: {error}"
            continue
        if all(message["content"] in text for message in messages):
            return {"text": text}
    return {"reason": f"the chat template cannot be rendered ({reason[:300]})"}


def _write(
    template: str, tokens: dict[str, str], date: str, conversations: list[list[dict[str, str]]]
) -> dict[str, Any]:
    """Every conversation whole; those that the template refuses are left out."""
    texts, reason = [], None
    # what says nothing of a message's text has to be given it in parts, if that helps
    form = next((form for form in (list, _in_parts) if _says(template, tokens, date, form)), list)
    for messages in conversations:
        room = MAX_RENDERED + 4 * sum(len(message["content"]) for message in messages)
        try:
            found = _environment(date).from_string(template)
            pieces = found.generate(
                messages=form(messages), add_generation_prompt=False, tools=None, documents=None, **tokens
            )
            texts.append("".join(_pieces(pieces, room)))
        except Exception as error:  # noqa: BLE001 - a template can raise anything
            reason = reason or f"{type(error).__name__}: {error}"[:300]
    return {"texts": texts, "reason": reason}


def _in_parts(messages: Sequence[Mapping[str, str]]) -> list[Any]:
    """Every content as a list of parts, which is all that some templates of models that see images read."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def _says(
    template: str, tokens: dict[str, str], date: str, form: Callable[[Sequence[Mapping[str, str]]], list[Any]]
) -> bool:
    """Whether a template writes the text of a message that it is given in this form."""
    try:
        found = _environment(date).from_string(template)
        pieces = found.generate(
            messages=form([_USER]), add_generation_prompt=False, tools=None, documents=None, **tokens
        )
        return _USER["content"] in "".join(_pieces(pieces))
    except Exception:  # noqa: BLE001 - a template can raise anything
        return False


class _TooLong(Exception):
    pass


def _pieces(stream: Any, room: int = MAX_RENDERED) -> Any:
    length = 0
    for piece in stream:
        length += len(piece)
        if length > room:
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
