"""Values of the Hub's JSON in the shape that is expected, whatever was sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["entries", "mapping", "number", "text"]


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def entries(value: Any) -> list[Any]:
    """A list as it is, one value as a list of it, nothing as none."""
    return value if isinstance(value, list) else [value] if value else []


def text(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) and value else None


def number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
