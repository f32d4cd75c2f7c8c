"""The parts that a plan's jobs made become one release: one record, one folder, published once.

A part is a folder below the output folder: `1-of-2`, or `release-…-1-of-2` where an artifact brought it.
The weights of all parts are linked to where a run that made everything at once would have put them. Once
they are published they are removed, and receipts.json says what became of them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hubbot import log
from hubbot.cards.report import write_report
from hubbot.domain import Conversations, Family, File, Peak, Record
from hubbot.errors import BadRecord
from hubbot.hub.publish.repo_release import Receipt
from hubbot.record.file import FILE_NAME, read_record, write_record
from hubbot.record.fingerprint import fingerprint_of
from hubbot.release.licence_texts import FOLDER, kept_licences
from hubbot.settings import PublishSettings

__all__ = ["Part", "joined", "keep_receipts", "kept_receipts", "lay_out", "read_parts", "tidy"]

_RECEIPTS = "receipts.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    name: str  # "1-of-2"
    folder: Path
    record: Record  # its files under their paths in the release
    places: Mapping[str, Path]  # path in the release -> file of the part


def read_parts(out: Path, names: Sequence[str]) -> tuple[Part, ...]:
    """The named parts; what an earlier plan left beside them does not count. Raises BadRecord for one that is absent."""
    taken: dict[str, str] = {}  # path in the release -> sha256
    return tuple(_read(_folder(out, name), name, taken) for name in names)


def _folder(out: Path, name: str) -> Path:
    for file in sorted([*out.glob(f"{name}/{FILE_NAME}"), *out.glob(f"*-{name}/{FILE_NAME}")]):
        return file.parent
    msg = f"{out} has no part {name}, of which the plan tells. Run the quantize job that makes it, with the same `out`."
    raise BadRecord(msg)


def _read(folder: Path, name: str, taken: dict[str, str]) -> Part:
    """A part. A file that another part has under the same path, and that is not the same, gets the part's name."""
    record = read_record(folder)
    places: dict[str, Path] = {}

    def placed(file: File) -> File:
        path = PurePosixPath(file.path)
        if taken.setdefault(file.path, file.sha256) != file.sha256:
            path = path.with_name(f"{path.stem}-{name}{path.suffix}")
        places[str(path)] = folder / file.path
        return replace(file, path=str(path))

    variants = tuple(replace(one, files=tuple(placed(file) for file in one.files)) for one in record.variants)
    return Part(name=name, folder=folder, record=replace(record, variants=variants), places=places)


# --- one record -----------------------------------------------------------------------------------------


def joined(parts: Sequence[Part], variants: Sequence[str]) -> Record:
    """One record of all parts: what they share, their variants in order, times added up, the highest peaks.

    variants: the names that the plan asked of all parts together.
    Raises BadRecord where parts hold others, or were made from other weights, texts or settings.
    """
    first = parts[0].record
    for part in parts[1:]:
        _need_same_run(parts[0], part)
    found = [variant for part in parts for variant in part.record.variants]
    if sorted(one.name for one in found) != sorted(variants):
        msg = f"The parts hold {', '.join(one.name for one in found)}; the plan asked for {', '.join(variants)}. Run this plan's quantize jobs again."
        raise BadRecord(msg)
    records = [part.record for part in parts]
    peaks = [record.peak for record in records]
    return replace(
        first,
        hardware=_agreed([record.hardware for record in records]),
        calibration=next((record.calibration for record in records if record.calibration), None),
        conversations=Conversations.together(record.conversations for record in records),
        variants=tuple(found),
        timings=_added([record.timings for record in records]),
        peak=Peak(**{name: _highest([getattr(peak, name) for peak in peaks]) for name in ("rss", "vram", "disk")}),
        created=max((record.created for record in records if record.created), default=None),
    )


def _need_same_run(one: Part, other: Part) -> None:
    ours, theirs = _shared(one.record), _shared(other.record)
    both_calibrated = one.record.calibration and other.record.calibration
    for what in ours:
        if ours[what] != theirs[what] and (what != "calibration" or both_calibrated):
            msg = f"Part {other.name} was made with another {what} than part {one.name}; one release needs the same. Run all quantize jobs of one plan again."
            raise BadRecord(msg)


def _shared(record: Record) -> dict[str, Any]:
    source = record.source
    return {
        "source": (source.repo, source.revision, source.files),
        "version of hubbot": record.hubbot.get("version"),
        "configuration": record.config,
        "evaluation": record.evaluation,
        "set of conversations": record.conversations and record.conversations.text,
        "calibration": record.calibration,
    }


def _agreed(machines: Sequence[Mapping[str, str | int | None]]) -> dict[str, str | int | None]:
    """What all machines have in common; null where they differ."""
    return {
        name: value if all(other.get(name) == value for other in machines) else None
        for name, value in machines[0].items()
    }


def _added(timings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    stages = dict.fromkeys(stage for part in timings for stage in part)
    return {stage: sum(part.get(stage, 0.0) for part in timings) for stage in stages}


def _highest(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


# --- one folder -----------------------------------------------------------------------------------------


def lay_out(parts: Sequence[Part], record: Record, out: Path) -> None:
    """Put the release into `out`: its files, the licence, linked where the file system can, its record and its report.

    Raises BadRecord for a file of a part that is gone, or is a link out of the part.
    """
    for part in parts:
        for path, source in part.places.items():
            if (
                source.is_symlink()
                or not source.is_file()
                or not source.resolve().is_relative_to(part.folder.resolve())
            ):
                msg = f"{source} is no plain file of part {part.name}, though its record names it. Run the quantize job of that part again."
                raise BadRecord(msg)
            _link(source, out / path)
        for name, text in kept_licences(part.folder).items():
            _link(text, out / FOLDER / name)
    write_report(record, out)
    write_record(record, out)  # last: where it lies, the release is whole


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(source):
        return
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


# --- after publishing -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """Of which release, published how, the receipts are."""

    fingerprint: str
    mode: str
    namespace: str | None
    receipts: tuple[Receipt, ...]


def keep_receipts(out: Path, record: Record, publish: PublishSettings, receipts: Sequence[Receipt]) -> None:
    """Remember in `out` what publishing this record came to."""
    kept = _Kept(
        fingerprint=fingerprint_of(record),
        mode=publish.mode,
        namespace=publish.namespace,
        receipts=tuple(receipts),
    )
    unfinished = out / f".{_RECEIPTS}.part"
    unfinished.write_bytes(TypeAdapter(_Kept).dump_json(kept, indent=1))
    unfinished.replace(out / _RECEIPTS)


def kept_receipts(
    parts: Sequence[Part], out: Path, record: Record, publish: PublishSettings
) -> tuple[Receipt, ...] | None:
    """What publishing this record came to before, where its weights were removed since; None: publish it."""
    if all(place.is_file() for part in parts for place in part.places.values()):
        return None
    try:
        kept = TypeAdapter(_Kept).validate_json((out / _RECEIPTS).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    wanted = (fingerprint_of(record), publish.mode, publish.namespace)
    return kept.receipts if (kept.fingerprint, kept.mode, kept.namespace) == wanted else None


def tidy(parts: Sequence[Part], out: Path) -> None:
    """Remove the weights of a published release and what the work left; records, cards and reports stay."""
    for folder in (out, *(part.folder for part in parts)):
        for place in (folder / name for name in (*Family, ".work")):
            try:
                shutil.rmtree(place)
            except FileNotFoundError:
                continue
            except OSError as error:
                log.warning(f"{place} could not be removed ({error.strerror}) and keeps its disk. Remove it by hand.")
