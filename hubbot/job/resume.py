"""What an earlier run has left in the output folder: all of it, so that nothing is to do, or a sweep to go on with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from hubbot.child.messages import MakeAnswer
from hubbot.confine.stage import decode, encode
from hubbot.domain import Record, Source
from hubbot.formats.names import names_made
from hubbot.machine.versions import version
from hubbot.record.file import FILE_NAME, read_record
from hubbot.record.fingerprint import fingerprint, fingerprint_of, shaping, texts_of
from hubbot.settings import Settings

__all__ = ["finished", "forget_sweeps", "keep_answer", "kept_answer", "probes_folder", "sweep_folder"]

_ANSWER = "answer.json"  # in the folder of a sweep that is whole


def finished(out: Path, source: Source, settings: Settings, texts: Callable[[], Mapping[str, str]]) -> Record | None:
    """The record of an earlier run that made just this, whole; None where there is something to do.

    texts: gives purpose -> sha256 of calibration and evaluation text as they are now. It is called only where
    everything else is the same. What was made with --force on the evaluation's own text counts for nobody else.
    """
    if settings.force or not (out / FILE_NAME).exists():
        return None
    record = read_record(out / FILE_NAME)
    if record.calibration and record.calibration.overlap_forced:
        return None
    names = names_made(settings.variants, [variant.name for variant in record.variants])
    known = texts_of(record)
    wanted = fingerprint(source=source, config=shaping(settings), variants=names, version=version(), texts=known)
    if fingerprint_of(record) != wanted or not _is_whole(record, out):
        return None
    return record if dict(texts()) == known else None


def _is_whole(record: Record, out: Path) -> bool:
    files = [file for variant in record.variants for file in variant.files]
    return all((out / file.path).is_file() and (out / file.path).stat().st_size == file.size for file in files)


def sweep_folder(
    work: Path, number: int, *, source: Source, settings: Settings, texts: Mapping[str, str], variants: Sequence[str]
) -> Path:
    """Where a sweep keeps what it has done so far.

    The folder has another name for everything that leads to other bytes or numbers, so that no state of another
    job is ever taken up: more than a release's fingerprint has in it, because the README, the licence and who
    made the files stand in their headers.
    """
    release = fingerprint(source=source, config=shaping(settings), variants=variants, version=version(), texts=texts)
    seen: dict[str, Any] = {**asdict(source), "folder": source.name, "revision": None}
    whole = [release, seen, settings.publish.maker, settings.force]
    key = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return work / f"sweep-{number}-{key[:16]}"


def keep_answer(sweep: Path, answer: MakeAnswer) -> None:
    """For a job that is killed while what its sweep has made is checked."""
    partial = sweep / f"{_ANSWER}.partial"
    partial.write_bytes(encode(MakeAnswer, answer))
    partial.replace(sweep / _ANSWER)


def kept_answer(sweep: Path) -> MakeAnswer | None:
    """What a sweep of an earlier run has come to, if all of it is still there."""
    try:
        answer = decode(MakeAnswer, (sweep / _ANSWER).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    files = chain(answer.references.values(), *(made.paths for made in answer.made.values()))
    return answer if all(map(Path.is_file, files)) else None


def probes_folder(work: Path, *, source: Source, settings: Settings, texts: Mapping[str, str]) -> Path:
    """Where what probes have shown of a model on a calibration text is kept, for any variants, also after the job."""
    text = {purpose: digest for purpose, digest in texts.items() if purpose == "calibration"}
    config = settings.calibration.model_dump(include={"samples", "length", "seed"})  # what cuts windows from the text
    key = fingerprint(source=source, config=config, variants=(), version=version(), texts=text)
    return work / f"probes-{key[:16]}"


def forget_sweeps(work: Path, *, but: Collection[Path] = ()) -> None:
    """Drop what killed sweeps would have gone on from; their room is needed, and nobody asks for them any more."""
    for folder in work.glob("sweep-*"):
        if folder not in but:
            shutil.rmtree(folder)
