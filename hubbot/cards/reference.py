"""Writes docs/settings.md from the settings themselves and docs/runtimes.md from the table of runtimes: `make docs`.

README.md and docs/formats.md hold parts of that table.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic.fields import FieldInfo

from hubbot.runtimes.page import filled, runtimes_page
from hubbot.settings import Settings
from hubbot.settings.sections import Count, Section, Size

__all__ = ["settings_page"]

_HEAD = """# Settings

Written by `make docs` from `hubbot/settings/`. Every key can stand in `hubbot.toml`, which `--config hubbot.toml`
names; the common ones are flags too (`hubbot run --help`). Flags win over `hubbot.toml`, which wins over the defaults
here. A key that is not listed here is refused by its path. Sizes are written as `45GB`, `300MB` or `1.5TiB`.

```toml
variants = "Q4_K_M,Q8_0,gptq-4bit-128g"

[calibration]
samples = 256

[publish]
mode = "pr"
namespace = "my-org"
```
"""

_WORDS: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true or false", date: "day"}


def settings_page() -> str:
    """The page as Markdown."""
    return "\n".join([_HEAD, *_section("", Settings)])


def _section(path: str, section: type[Section]) -> Iterator[str]:
    """A heading, what the section is for, its keys as a table; then the sections inside of it."""
    yield f"## `[{path}]`\n" if path else "## At the top\n"
    if path and section.__doc__ and not section.__doc__.startswith("!!!"):
        yield f"{section.__doc__.strip()}\n"
    inner = {key: each for key, field in section.model_fields.items() if (each := _inner(field))}
    keys = {key: field for key, field in section.model_fields.items() if key not in inner}
    if keys:
        yield "| key | value | default | meaning |\n| --- | --- | --- | --- |"
        yield from (_row(key, field) for key, field in keys.items())
        yield ""
    for key, each in inner.items():
        yield from _section(f"{path}.{key}" if path else key, each)
    for key, field in keys.items():
        if table := _table(field):
            yield from _section(f"[{path}.{key}]", table)


def _inner(field: FieldInfo) -> type[Section] | None:
    """The section that a key holds, if it holds one."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _table(field: FieldInfo) -> type[Section] | None:
    """The section that a key holds several of, if it does."""
    kinds = [kind for kind in typing.get_args(field.annotation) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, Section)), None)


def _row(key: str, field: FieldInfo) -> str:
    cells = (f"`{key}`", _kind(field), _default(field.default), field.description or "")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _kind(field: FieldInfo) -> str:
    if _is(field, Size):
        return "size"
    if _is(field, Count):
        return "number of weights"
    return _word(field.annotation)


def _is(field: FieldInfo, kind: Any) -> bool:
    """Whether a field is of an annotated type, alone or beside None; its reader tells."""
    reader = typing.get_args(kind)[1]
    parts = (field.annotation, *typing.get_args(field.annotation))
    found = [*field.metadata, *(each for part in parts for each in typing.get_args(part)[1:])]
    return any(each is reader or each == reader for each in found)


def _word(kind: Any) -> str:
    """A type as people say it."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _word(parts[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_word(part) for part in parts if part is not type(None))
    if origin is dict:
        held = _word(parts[1])
        return f"table of {held}" if held.startswith(("table", "`")) else f"table of {held}s"
    if origin is tuple:
        return "list of tables" if isinstance(parts[0], type) and issubclass(parts[0], Section) else "list"
    return _WORDS.get(kind, "path" if kind is Path else str(kind))


def _default(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return f"`{str(value).lower()}`"
        case str() | Path():
            return f'`"{value}"`'
        case ():
            return "`[]`"
        case dict() if not value:
            return "`{}`"
        case dict():
            return "`" + ", ".join(f"{key} = {each}" for key, each in value.items()) + "`"
        case int() if value >= 10**9 and value % 10**9 == 0:
            return f'`"{value // 10**9}GB"`'
        case _:
            return f"`{value}`"


def main() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    for name, text in (("settings.md", settings_page()), ("runtimes.md", runtimes_page())):
        (docs / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"wrote docs/{name}\n")
    for page in (docs.parent / "README.md", docs / "formats.md"):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
