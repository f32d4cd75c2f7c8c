"""Functions, tables and structs out of ggml's source, by name. A pattern that does not fit exactly raises TextChanged."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["GgmlText", "TextChanged", "replaced"]


class TextChanged(Exception):
    """ggml's text is not what was looked for."""


class GgmlText:
    """The files of a llama.cpp tree that hold the encoders. Raises OSError where they are not there."""

    def __init__(self, source: Path) -> None:
        """source: the root of the tree."""
        folder = source / "ggml" / "src"
        self._quants = (folder / "ggml-quants.c").read_text(encoding="utf-8")
        self._common = (folder / "ggml-common.h").read_text(encoding="utf-8")
        self._conversions = (folder / "ggml-impl.h").read_text(encoding="utf-8")

    def function(self, name: str) -> str:
        """A function of ggml-quants.c, as one of a program's."""
        return _function(name, self._quants)

    def conversion(self, name: str) -> str:
        """A function of ggml-impl.h: floats and halves."""
        return _function(name, self._conversions)

    def structs(self) -> str:
        """Every block type, with the sizes that they are made of."""
        text = _between(self._common, "#define QK_K 256\n", "#endif // GGML_COMMON_DECL\n")
        for start, end in (
            ("#if defined(GGML_COMMON_DECL_CUDA)", "#endif // GGML_COMMON_DECL_CUDA"),
            ("#ifdef _MSC_VER", "#endif // _MSC_VER"),
        ):
            text = replaced(rf"^{re.escape(start)}.*?^{re.escape(end)}[^\n]*\n", "", text, count=None)
        return text

    def type(self, name: str) -> str:
        """A struct of ggml-quants.c."""
        return _only(rf"^typedef struct \{{[^}}]*\}} {name};\n", self._quants)[0]

    def constants(self, pattern: str) -> str:
        """The definitions of numbers whose names match."""
        found: dict[str, None] = dict.fromkeys(
            re.findall(rf"^#define (?:{pattern})\s[^\n]*\n", self._common + self._quants, re.MULTILINE)
        )
        if not found:
            raise TextChanged(f"no constant is named {pattern}")
        return "".join(found)

    def table(self, name: str) -> str:
        """A constant table of ggml-common.h."""
        kind, size, rows = _only(
            rf"^GGML_TABLE_BEGIN\((\w+), {name}, (\w+)\)\n(.*?)^GGML_TABLE_END\(\)", self._common
        ).groups()
        return f"TABLE {kind} {name}[{size}] = {{\n{rows}}};\n"

    def numbers(self, name: str) -> list[int]:
        """The whole numbers of an array, of either file."""
        pattern = rf"\b{name}(?:, (\w+)\)\n|\[(\w+)\] = \{{)(.*?)(?:^GGML_TABLE_END|\}};)"
        found = _only(pattern, self._common + self._quants)
        return [int(number, 0) for number in re.findall(r"-?\b(?:0x[0-9a-fA-F]+|\d+)\b", found[3])]


def replaced(pattern: str, by: str, text: str, *, count: int | None = 1) -> str:
    """The text with a pattern replaced, which must be there `count` times; None: at least once."""
    changed, found = re.subn(pattern, by, text, flags=re.MULTILINE | re.DOTALL)
    if found != count and (count is not None or not found):
        raise TextChanged(f"{pattern!r} was found {found} times, not {count or 'once or more'}")
    return changed


def _function(name: str, text: str) -> str:
    found = _only(rf"^(?:static )?(?:inline )?([a-z_0-9]+ {name}\([^;{{]*\{{\n.*?^\}}\n)", text)
    return f"FUNCTION {found[1]}"


def _only(pattern: str, text: str) -> re.Match[str]:
    found = list(re.finditer(pattern, text, re.MULTILINE | re.DOTALL))
    if len(found) != 1:
        raise TextChanged(f"{pattern!r} was found {len(found)} times, not once")
    return found[0]


def _between(text: str, start: str, end: str) -> str:
    first, last = text.find(start), text.find(end)
    if first < 0 or last < first:
        raise TextChanged(f"there is nothing between {start!r} and {end!r}")
    return text[first:last]
