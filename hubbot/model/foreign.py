"""One sentence for whatever a library raises over a stranger's file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from hubbot.errors import HubbotError, SourceRefused

__all__ = ["foreign", "said", "without_folders"]

_RUST = "pyo3_runtime"  # its PanicException is no Exception
_LONGEST = 300  # characters of a library's own words


@contextmanager
def foreign(library: str, does: str, *, then: str, kind: type[HubbotError] = SourceRefused) -> Iterator[None]:
    """Code of `library` runs over files that strangers wrote, so it may raise anything.

    does: what it could not do, "read the tokenizer of x". then: what to do next, a sentence or two.
    Raises `kind` with what the library said; hubbot's own errors pass.
    """
    try:
        yield
    except (HubbotError, MemoryError):  # what ran out is told elsewhere
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != _RUST:  # a signal, an exit
            raise
        msg = f"{library} cannot {does}: {said(error)}. {then}"
        raise kind(msg) from error


def said(error: BaseException) -> str:
    """What an error says, in one line of printable characters, without folders of this machine."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    words = without_folders(line)[:_LONGEST].rstrip(". ")
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def without_folders(text: str) -> str:
    """Paths cut to their last name: a work folder, a home or a build's tree is nothing to a card's reader."""
    return _FOLDERS.sub("", text)


_FOLDERS = re.compile(r"(?<![\w./])(?!//)(?:~|\.\.?)?/(?:[^\s:;,'\"/]+/)+")
