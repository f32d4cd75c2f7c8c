"""What a row of a text holds, text or the messages of a conversation, and how it is kept on this disk."""

from __future__ import annotations

import json
from typing import Literal

__all__ = ["EMPTY", "Kind", "Row", "as_line", "as_row", "length"]

Kind = Literal["text", "messages"]
Row = str | list[dict[str, str]]  # messages: role and content of each

EMPTY: dict[Kind, Row] = {"text": "", "messages": []}


def as_row(value: object, kind: Kind) -> Row | None:
    """The value as a row of that kind; None where it is none."""
    if kind == "text":
        return value if isinstance(value, str) else None
    if not isinstance(value, list):
        return None
    messages = [_message(one) for one in value]
    whole = [message for message in messages if message]
    return whole if len(whole) == len(messages) else None


def length(row: Row, *, bare: bool = False) -> int:
    """Characters. bare: without the blanks around a text."""
    texts = [row] if isinstance(row, str) else [message["content"] for message in row]
    return sum(len(text.strip() if bare else text) for text in texts)


def as_line(row: Row) -> str:
    """A row of the file, JSON."""
    return json.dumps({"text" if isinstance(row, str) else "messages": row}, ensure_ascii=False) + "\n"


def _message(value: object) -> dict[str, str] | None:
    role, content = (value.get("role"), value.get("content")) if isinstance(value, dict) else (None, None)
    return {"role": role, "content": content} if isinstance(role, str) and isinstance(content, str) else None
