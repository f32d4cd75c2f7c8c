"""A full disk and memory that ran out, told as what they are wherever they come up: no defect, but too little room."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubbot.errors import BudgetExceeded, HubbotError

__all__ = ["translate_shortage", "translated_shortages"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("No space left on device", "Disk quota exceeded")  # safetensors keeps no number
_NO_MEMORY_WORDS = ("can't allocate memory", "Cannot allocate memory")  # torch on the CPU


def translate_shortage(error: BaseException, place: Path | None = None) -> BudgetExceeded | None:
    """The error that says what ran out and what to do; None where nothing did. place: a folder on the disk in use."""
    text = " ".join(str(error).split())[:300]
    if (isinstance(error, OSError) and error.errno in _FULL) or any(words in text for words in _FULL_WORDS):
        where = f"The disk under {place}" if place else "The disk"
        msg = f"{where} is full ({text}). Make room, or name a larger disk with --out, and run the same command again; what is there already is kept."
        return BudgetExceeded(msg)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which takes seconds to import
        msg = f"GPU memory ran out ({text}). Use a larger GPU, --device cpu, or fewer variants at a time; the same command goes on where it stopped."
        return BudgetExceeded(msg)
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY_WORDS):
        msg = f"Memory (RAM) ran out ({text or 'nothing more could be allocated'}). Free some, ask for fewer variants or windows (--variants, --samples) at a time, or lower budget.ram; the same command goes on where it stopped."
        return BudgetExceeded(msg)
    return None


@contextmanager
def translated_shortages(place: Path | None = None) -> Iterator[None]:
    """Turn an error that means a full disk or no memory into BudgetExceeded; let every other pass."""
    try:
        yield
    except HubbotError:
        raise
    except Exception as error:
        if found := translate_shortage(error, place):
            raise found from error
        raise
