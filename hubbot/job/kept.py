"""What confined children have found out of models, kept for whoever asks the same again: the plan, the run, its resumption, the bot.

Only this process writes here; a child's walls have no such folder. An entry says what it is an answer to and has a digest, and is
read as strictly as a child's own word; what is damaged, of another shape or of another question is as if it were not there.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from hubbot import environment
from hubbot.child.messages import SurveyAnswer
from hubbot.confine.stage import decode, encode

__all__ = ["lies_in", "read", "write"]

_MOST = 256  # entries
_LARGEST = 4 * 2**20  # bytes of one; a plan of hundreds of variants has a few hundred thousand


def read(basis: str) -> SurveyAnswer | None:
    """The answer to just this. basis: `hubbot.job.basis.basis`."""
    folder = environment.surveys()
    if folder is None:
        return None
    with suppress(OSError, ValueError, RecursionError):
        with (folder / f"{basis}.json").open("rb") as file:
            head, _, body = file.read(_LARGEST + 200).partition(b"\n")
        if head == _head(basis, body):
            return decode(SurveyAnswer, body)
    return None


def lies_in(out: Path) -> bool:
    """Whether entries lie in a job's output folder, where its children write."""
    folder = environment.surveys()
    return folder is not None and folder.resolve().is_relative_to(out.resolve())


def write(basis: str, answer: SurveyAnswer) -> None:
    """Keep it, whole or not at all; the oldest go. A folder that cannot be written costs the next one time, and nothing else."""
    folder, body = environment.surveys(), encode(SurveyAnswer, answer)
    if folder is None or len(body) > _LARGEST:
        return
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix="partial-", delete=False) as file:
            file.write(_head(basis, body) + b"\n" + body)
        Path(file.name).replace(folder / f"{basis}.json")
        for old in _by_age(folder)[:-_MOST]:
            old.unlink(missing_ok=True)


def _head(basis: str, body: bytes) -> bytes:
    return f"{basis} {hashlib.sha256(body).hexdigest()}".encode()


def _by_age(folder: Path) -> list[Path]:
    """All that lies there, what a killed process has left among it; the oldest first."""
    return sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
