"""Where hubbot's own words go: standard error, also while what others print there is sent elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

__all__ = ["aside", "copied", "screen"]

_kept: list[TextIO] = []  # standard error as it was before it was sent elsewhere, innermost last


def screen() -> TextIO:
    """What the reader sees; every thread's words go there."""
    return _kept[-1] if _kept else sys.stderr


@contextmanager
def copied() -> Iterator[TextIO]:
    """Standard error as it is now, wherever its descriptor is sent later."""
    with os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace") as copy:
        yield copy


@contextmanager
def aside(path: Path) -> Iterator[None]:
    """Send what other programs print in this process, also from native code, to a file: banners and hints."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptors = [(number, os.dup(number)) for number in (1, 2)]
    with path.open("a", buffering=1, errors="backslashreplace") as file, copied() as copy:
        _kept.append(copy if sys.stderr is sys.__stderr__ else sys.stderr)  # a bar's, say, which is no descriptor
        try:
            for number, _ in descriptors:
                os.dup2(file.fileno(), number)
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            sys.stdout.flush()  # into the file still, where they write to the descriptors
            sys.stderr.flush()
            for number, descriptor in descriptors:
                os.dup2(descriptor, number)
                os.close(descriptor)
            _kept.pop()
