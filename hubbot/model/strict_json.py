"""JSON from strangers: bounded in size, depth and number of values, without duplicate keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from hubbot.errors import UnsafeSource

__all__ = ["object_of", "parse_object", "read_object"]

DEEPEST = 32  # levels of nesting; config.json of multimodal models has 4


def read_object(path: Path, *, largest: int, most_values: int = 200_000, constants: bool = False) -> dict[str, Any]:
    """The JSON object in a file.

    largest: bytes. most_values: objects, arrays and members in total. constants: allow NaN and Infinity,
    which Python's writers put into config.json.
    Raises UnsafeSource naming the file and the rule that it breaks.
    """
    return parse_object(read_bytes(path, largest), name=path.name, most_values=most_values, constants=constants)


def read_bytes(path: Path, largest: int) -> bytes:
    """A whole file, refused unread past `largest` bytes."""
    size = path.stat().st_size
    if size > largest:
        msg = f"{path.name} has {size:,} bytes; at most {largest:,} are read. Such a file is no honest part of a model."
        raise UnsafeSource(msg)
    with path.open("rb") as file:
        return file.read(largest)


def parse_object(data: bytes, *, name: str, most_values: int = 200_000, constants: bool = False) -> dict[str, Any]:
    """The JSON object in `data`; see `read_object`."""
    # Counted before parsing, as a megabyte of brackets becomes a hundred megabytes of Python objects.
    values = sum(data.count(mark) for mark in (b"{", b"[", b","))
    if values > most_values:
        msg = f"{name} holds up to {values:,} JSON values; at most {most_values:,} are read."
        raise UnsafeSource(msg)
    value = None
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=None if constants else _no_constant,
        )
        deep = _depth(value) > DEEPEST
    except RecursionError:
        deep = True
    except _Broken as error:
        msg = f"{name} {error}."
        raise UnsafeSource(msg) from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, integers of thousands of digits
        msg = f"{name} is not valid JSON: {str(error)[:200]}. The file is damaged or of another type."
        raise UnsafeSource(msg) from None
    if deep:
        msg = f"{name} nests JSON deeper than {DEEPEST} levels."
        raise UnsafeSource(msg)
    return object_of(value, name)


def object_of(value: Any, name: str) -> dict[str, Any]:
    """The value, if it is a JSON object."""
    if not isinstance(value, dict):
        msg = f"{name} must be a JSON object; found {_kind(value)}."
        raise UnsafeSource(msg)
    return value


class _Broken(Exception):
    """Becomes an UnsafeSource with the file's name."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers of a duplicate key may take different values, so there must be none."""
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        msg = f"names the key {twice[:100]!r} twice"
        raise _Broken(msg)
    return value


def _no_constant(text: str) -> NoReturn:
    msg = f"holds {text}, which is not JSON"
    raise _Broken(msg)


def _depth(value: Any) -> int:
    """Levels of nesting, counted level by level; stops early past the limit."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        level, depth = below, depth + 1
    return depth - 1


def _kind(value: Any) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
