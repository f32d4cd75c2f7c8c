"""Text of a stranger's, made to be seen: a terminal and a page of a log obey some characters instead of showing them."""

from __future__ import annotations

import re

__all__ = ["visible"]

# Control characters but tab and line ends, with which escape sequences begin; marks of direction; what has no width.
_OBEYED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with a replacement character for each that would be obeyed."""
    return _OBEYED.sub("\N{REPLACEMENT CHARACTER}", text)
