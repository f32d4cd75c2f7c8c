"""jinja environments over hubbot's templates.

In a wheel the templates lie in the package, in a checkout beside it; the loader knows both places.
What a template prints is escaped unless an escaping function has said that it is ready.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hubbot.cards import escape

__all__ = ["html_environment", "markdown_environment"]

_HERE = Path(__file__).resolve().parents[1]


def markdown_environment() -> Environment:
    """For cards, summaries and pull requests: plain strings are escaped as running Markdown text."""
    environment = Environment(  # noqa: S701 - autoescape is for HTML; finalize escapes for Markdown
        loader=_loader(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize,
    )
    for name in ("code", "fence", "inline"):
        environment.filters[name] = _ready(getattr(escape, name))
    environment.filters["ready"] = Markup  # our own Markdown: tables and commands built in Python
    return environment


def html_environment() -> Environment:
    """For the report: jinja's own autoescape; control and direction characters are made visible first."""
    return Environment(
        loader=_loader(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
        finalize=lambda value: (
            value if isinstance(value, Markup) or not isinstance(value, str) else escape.clean(value)
        ),
    )


def _loader() -> ChoiceLoader:
    return ChoiceLoader([FileSystemLoader(_HERE / "templates"), FileSystemLoader(_HERE.parent / "templates")])


def _finalize(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    if value is None:
        msg = "a template printed a number that was not measured"
        raise TypeError(msg)
    return escape.inline(str(value))


def _ready(function: Any) -> Any:
    def escaped(*args: Any, **options: Any) -> Markup:
        return Markup(function(*args, **options))  # noqa: S704 - escaped by the function

    return escaped
