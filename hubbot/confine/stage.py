"""A stage: a function that another process runs, with the types of its one question and its one answer.

Both travel as JSON. They are written and read here and nowhere else: what has not its type is refused on both
sides, and so is a key that the type does not know.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

__all__ = ["Stage", "decode", "encode", "perform"]

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Generic[Q, A]):
    target: str  # "package.module:function", which takes one Q and gives an A
    question: type[Q]
    answer: type[A]


def encode(kind: Any, value: object) -> bytes:
    """A value as JSON, numbers that are none (NaN) included. Raises TypeError for what is not of its type."""
    try:
        return json.dumps(_adapter(kind).dump_python(value, mode="json", warnings="error")).encode()
    except PydanticSerializationError as error:
        raise TypeError(str(error)) from None


def decode(kind: type[A], data: bytes) -> A:
    """The value in JSON. Raises ValueError for what is not of its type, of its bounds, or not known to it."""
    value: A = _adapter(cast("Hashable", kind)).validate_json(data, strict=True, extra="forbid")
    return value


def perform(target: str, question: bytes) -> bytes:
    """Call a stage's function, whose annotations tell the types; question and answer are encoded."""
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    hints = get_type_hints(function)
    asked = hints.get(next(iter(inspect.signature(function).parameters)), Any)
    return encode(hints.get("return", Any), function(decode(asked, question)))


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast("Any", kind))
