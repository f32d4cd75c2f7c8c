"""Text from outside, made harmless for Markdown, HTML, YAML and a shell command that a reader will paste.

Model names, licences, tags, templates, samples and error messages come from strangers. Each function
here is for one place; the result shows the text and does nothing else.
"""

from __future__ import annotations

import html
import re
import shlex
import unicodedata
from urllib.parse import quote, urlsplit

from hubbot.domain import HUB_ID

__all__ = ["clean", "code", "fence", "inline", "line", "markup", "repo_id", "shell", "url"]

# Directions that reorder what stands beside them, and marks that cannot be seen. Joiners stay: emoji
# and several scripts need them.
_UNSEEN = re.compile(
    "[\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_BREAKS = re.compile("\r\n|[\r\x85\u2028\u2029\x0b\x0c]")
_PUNCTUATION = re.compile(r"[!#$()*@\[\\\]^_`{|}~]")


def clean(text: str, *, limit: int = 20_000) -> str:
    """Printable text of at most `limit` characters: line breaks become \\n, what cannot be seen becomes U+FFFD."""
    text = _BREAKS.sub("\n", text[: limit + 1])
    shown = "".join(_visible(char) for char in _UNSEEN.sub("\ufffd", text))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _visible(char: str) -> str:
    if char in "\n\t":
        return char
    return "\ufffd" if unicodedata.category(char) in ("Cc", "Cs") else char


def line(text: str, *, limit: int = 300) -> str:
    """The same on one line, runs of blanks as one."""
    return " ".join(clean(text, limit=limit).split())


def inline(text: str, *, limit: int = 300) -> str:
    """For running Markdown text and table cells: nothing of it is markup, a link or a line break.

    Every punctuation mark that Markdown, its extensions or KaTeX could read is escaped, and so is a
    leading list mark. Addresses and mentions, which several readers find in the text after unescaping,
    are cut by an empty comment.
    """
    shown = _PUNCTUATION.sub(r"\\\g<0>", line(text, limit=limit))
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"(?i)(\\@|:(?=//)|\bwww(?=\.))", r"\1<!-- -->", shown)
    return re.sub(r"^(?:([-+=])|(\d+)(?=\.(?: |$)))", lambda mark: f"\\{mark[1]}" if mark[1] else f"{mark[2]}\\", shown)


def code(text: str, *, cell: bool = False, limit: int = 300) -> str:
    """A Markdown code span of one line. cell: it stands in a table, where a bar would end the cell."""
    shown = line(text, limit=limit) or " "
    if cell:
        shown = shown.replace("|", "\\|")
    ticks = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    pad = " " if shown[0] == "`" or shown[-1] == "`" else ""
    return f"{ticks}{pad}{shown}{pad}{ticks}"


def fence(text: str, info: str = "", *, limit: int = 8_000) -> str:
    """A fenced Markdown block that the text cannot close, and in which no comment can pass for one of our marks."""
    shown = clean(text, limit=limit).replace("<!--", "<! --").rstrip("\n")
    ticks = "`" * max(3, max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    return f"{ticks}{info}\n{shown}\n{ticks}"


def markup(text: str, *, limit: int = 20_000) -> str:
    """For HTML and SVG text and attribute values."""
    return html.escape(clean(text, limit=limit), quote=True)


def shell(word: str) -> str:
    """One word of a POSIX shell command that a reader will paste."""
    return shlex.quote(line(word))


def repo_id(text: str | None) -> str | None:
    """The text if it is a well-formed Hub id (owner/name), else None: only such a one becomes a link."""
    return text if text and HUB_ID.fullmatch(text) and ".." not in text and "--" not in text else None


def url(text: str | None) -> str | None:
    """An http(s) address, percent-encoded so that Markdown and HTML cannot read anything into it; None for others."""
    if not text or len(text) > 2_000:
        return None
    try:
        parts = urlsplit(text.strip())
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[A-Za-z0-9.-]+(:\d+)?", parts.netloc):
        return None
    rest = quote(clean(parts.path + (f"?{parts.query}" if parts.query else "")), safe="/%?=&,+-._~")
    return f"{parts.scheme}://{parts.netloc}{rest}"
