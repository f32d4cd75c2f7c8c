"""Files of the Hub onto the disk: each resumed where it broke off, and never believed before its hash agrees."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub import get_session
from huggingface_hub.utils._http import hf_raise_for_status

from hubbot.errors import HubbotError, SourceRefused
from hubbot.hub.client import Hub
from hubbot.hub.failures import translated_hub_errors
from hubbot.hub.read.contents import RemoteFile
from hubbot.hub.session import seconds_for
from hubbot.machine.shortage import translated_shortages

__all__ = ["Abandoned", "Mismatch", "Progress", "Repo", "fetch_file", "fetch_files", "read_range"]

PIECE = 1 << 20
_THREADS = 4
Progress = Callable[[str, int, int], None]  # path, bytes so far, bytes in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Repo:
    """Where files come from: a model repo at one commit."""

    id: str
    revision: str  # full sha
    hub: Hub

    def url(self, path: str) -> str:
        return f"{self.hub.endpoint}/{self.id}/resolve/{self.revision}/{quote(path)}"

    def headers(self) -> dict[str, str]:
        return {**self.hub.headers, "Accept-Encoding": "identity"}


class Mismatch(SourceRefused):
    """What arrived is not what the Hub describes."""


class Abandoned(HubbotError):
    """Nobody waits for the file any more."""


def fetch_file(
    repo: Repo,
    file: RemoteFile,
    into: Path,
    *,
    progress: Progress | None,
    wanted: Callable[[], bool] = lambda: True,
) -> str:
    """Bring one file to into/path and return its sha256.

    What an earlier, broken try has left is continued. Content that differs from the Hub's sha256 (or
    git's id of small files) or does not end where it should is thrown away and fetched once more; if it differs
    again: Mismatch. wanted: asked at every piece; once it says no, Abandoned is raised and the piece is kept.
    """
    target = into / file.path
    with translated_shortages(into), translated_hub_errors(f"{repo.id}/{file.path}", repo.hub):
        if target.is_file() and (found := _verified(target, file, wanted)):
            return found
        unfinished = into / ".unfinished" / file.path
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            repo.hub.retry(lambda: _download(repo, file, unfinished, progress, wanted), seconds=seconds_for(file.size))
            if found := _verified(unfinished, file, wanted):
                target.parent.mkdir(parents=True, exist_ok=True)
                unfinished.replace(target)
                return found
            unfinished.unlink()
    msg = (
        f"{file.path} of {repo.id} arrived twice with other content than the Hub describes "
        f"(expected {file.sha256 or file.blob_id}). Nothing of it was kept. Something between here and the Hub alters files; try another network."
    )
    raise Mismatch(msg)


def fetch_files(repo: Repo, files: Sequence[RemoteFile], into: Path, *, progress: Progress | None) -> dict[str, str]:
    """Bring several files, a few at a time; path -> sha256. Raises the first error, or what a signal raises, at once.

    The threads are told to stop and are not waited for, not even by the end of the process: an answer that
    stalls would hold it for minutes.
    """
    waiting: SimpleQueue[RemoteFile] = SimpleQueue()
    for file in files:
        waiting.put(file)
    ended = threading.Event()
    done: SimpleQueue[tuple[str, str] | BaseException] = SimpleQueue()
    bring = partial(fetch_file, repo, into=into, progress=progress, wanted=lambda: not ended.is_set())

    def run() -> None:
        try:
            while not ended.is_set():
                file = waiting.get_nowait()
                done.put((file.path, bring(file)))
        except Empty:
            return
        except BaseException as error:  # noqa: BLE001 -- it is raised again by whoever waits
            done.put(error)

    for _ in range(min(_THREADS, len(files))):
        threading.Thread(target=run, name="fetch", daemon=True).start()
    try:
        return dict(_got(done.get()) for _ in files)
    finally:
        ended.set()


def _got(outcome: tuple[str, str] | BaseException) -> tuple[str, str]:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _download(
    repo: Repo, file: RemoteFile, unfinished: Path, progress: Progress | None, wanted: Callable[[], bool]
) -> None:
    """Append what is missing to `unfinished`, up to the file's size; one byte more where the answer goes on past it."""
    done = unfinished.stat().st_size if unfinished.exists() else 0
    if done > file.size:
        unfinished.unlink()
        done = 0
    if done == file.size and unfinished.exists():
        return
    asked = {"Range": f"bytes={done}-"} if done else {}
    with _stream(repo, file.path, asked) as answer, unfinished.open("ab") as stream:
        if done and answer.status_code != 206:
            stream.truncate(0)
            done = 0
        for piece in answer.iter_raw():
            _need(wanted, file)
            stream.write(piece[: file.size + 1 - done])
            done += len(piece)
            if done > file.size:
                return  # the size shows that it is not the file that the Hub describes
            if progress:
                progress(file.path, done, file.size)
    if done < file.size:
        # A proxy that ends an answer early looks like success: go on from here.
        raise httpx2.ReadError(f"{file.path} ended after {done} of {file.size} bytes")


def _need(wanted: Callable[[], bool], file: RemoteFile) -> None:
    if not wanted():
        raise Abandoned(f"{file.path} was not fetched to its end. Run the same command again; it goes on from there.")


@contextmanager
def _stream(repo: Repo, path: str, headers: dict[str, str]) -> Iterator[Any]:
    """An answer to read from. Redirects to other hosts are followed without the token."""
    with get_session().stream(
        "GET", repo.url(path), headers={**repo.headers(), **headers}, follow_redirects=True
    ) as answer:
        if answer.is_error:
            answer.read()
        hf_raise_for_status(answer)
        yield answer


def read_range(repo: Repo, path: str, start: int, stop: int) -> bytes:
    """Bytes start..stop (exclusive) of a file."""

    def read() -> bytes:
        got = bytearray()
        with _stream(repo, path, {"Range": f"bytes={start}-{stop - 1}"}) as answer:
            skip = 0 if answer.status_code == 206 else start
            for piece in answer.iter_raw():
                got += piece
                if len(got) >= skip + stop - start:
                    break
        if len(got) < skip + stop - start:
            raise httpx2.ReadError(f"{path} ended early")
        return bytes(got[skip : skip + stop - start])

    with translated_hub_errors(f"{repo.id}/{path}", repo.hub):
        return repo.hub.retry(read)


def _verified(path: Path, file: RemoteFile, wanted: Callable[[], bool]) -> str | None:
    """The sha256 of a file if its size and hash are the Hub's, else None."""
    size = path.stat().st_size
    if size != file.size:
        return None
    sha256 = hashlib.sha256()
    sha1 = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    small = file.sha256 is None
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while block := stream.read(PIECE):
            _need(wanted, file)
            sha256.update(block)
            if small:
                sha1.update(block)
    agrees = sha1.hexdigest() == file.blob_id if small else sha256.hexdigest() == file.sha256
    return sha256.hexdigest() if agrees else None
