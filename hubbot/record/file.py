"""hubbot.json: `Record` as JSON, read strictly and written whole.

The file is what cards, reports and `watch` live on, and it may come from a stranger's repo: unknown
keys, other schema versions, paths out of the folder and files above 64 MiB are refused. In the file a
variant's score is flat (perplexity, stderr, ratio, kld, its intervals, …); null is what was not measured,
and also what was measured and is no finite number.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hubbot.domain import (
    SCHEMA_VERSION,
    Conversations,
    Divergence,
    ExpertUse,
    File,
    ImageCheck,
    LoadCheck,
    Peak,
    Perplexity,
    Record,
    Sample,
    Score,
    Source,
    Speed,
    TextRecord,
    Trial,
    VariantRecord,
    WindowMeans,
)
from hubbot.errors import BadRecord
from hubbot.record.schema import RecordJson, VersionJson, schema

__all__ = ["FILE_NAME", "MAX_BYTES", "from_json", "read_record", "schema", "to_json", "write_record"]

FILE_NAME = "hubbot.json"
MAX_BYTES = 64 * 2**20  # thirty variants of a model with 1,000 tensors come to 2 MB


# --- writing ----------------------------------------------------------------------------------------


def to_json(record: Record) -> str:
    """The record as JSON text, checked against the schema; non-finite numbers become null."""
    plain = _plain(asdict(record))
    plain["source"]["folder"] = record.source.folder.rstrip("/").rsplit("/", 1)[-1]
    plain["variants"] = [_flat(variant) for variant in plain["variants"]]
    text = json.dumps(plain, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    _parse(text.encode(), "the record to be written")
    return text


def write_record(record: Record, folder: Path) -> Path:
    """Write folder/hubbot.json by atomic rename: readers see the old file or the new one, whole."""
    text = to_json(record)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / FILE_NAME
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".hubbot-", suffix=".json")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target


def _plain(value: Any) -> Any:
    """Lists, finite numbers and encodable text; everything else as it is."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return str(value).encode("utf-8", "replace").decode()  # a lone surrogate cannot be written
    return value


_SCORE = tuple(field.name for field in fields(Score))


def _flat(variant: dict[str, Any]) -> dict[str, Any]:
    score = variant["score"] or dict.fromkeys(_SCORE)
    kld = score["kld"]
    if kld is not None and all(number is None for number in kld.values()):
        kld = None
    flat: dict[str, Any] = {}
    for key, value in variant.items():
        flat |= {**score, "kld": kld} if key == "score" else {key: value}
    return flat


# --- reading ----------------------------------------------------------------------------------------


def read_record(path: Path) -> Record:
    """The record in a file or in a folder's hubbot.json. Raises BadRecord for anything but a sound one."""
    file = path / FILE_NAME if path.is_dir() else path
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        msg = f"{file} cannot be read ({error.strerror}). Name a folder that `hubbot run` has written, or its {FILE_NAME}."
        raise BadRecord(msg) from None
    return from_json(data, origin=str(file))


def from_json(data: bytes | str, *, origin: str = FILE_NAME) -> Record:
    """The record in JSON text. Raises BadRecord naming the first wrong keys."""
    wire = _parse(data.encode("utf-8", "replace") if isinstance(data, str) else data, origin)
    values = {field: getattr(wire, field) for field in type(wire).model_fields if field != "version"}
    return Record(
        **values
        | {
            "schema": wire.version,
            "source": Source(**wire.source.model_dump()),
            "calibration": TextRecord(**wire.calibration.model_dump()) if wire.calibration else None,
            "evaluation": TextRecord(**wire.evaluation.model_dump()) if wire.evaluation else None,
            "base": Perplexity(**_numbers(wire.base.model_dump())) if wire.base else None,
            "variants": tuple(_variant(variant.model_dump()) for variant in wire.variants),
            "experts": tuple(ExpertUse(**use.model_dump()) for use in wire.experts),
            "peak": Peak(**wire.peak.model_dump()),
            "conversations": _conversations(wire.conversations.model_dump()) if wire.conversations else None,
        }
    )


def _parse(data: bytes, origin: str) -> RecordJson:
    if len(data) > MAX_BYTES:
        msg = f"{origin} is larger than {MAX_BYTES >> 20} MiB, more than any run writes. It is not read; make it again."
        raise BadRecord(msg)
    try:
        version = VersionJson.model_validate_json(data).version
        if version != SCHEMA_VERSION or isinstance(version, bool):
            msg = (
                f"{origin} has schema {str(version)[:40]!r}; this hubbot reads schema {SCHEMA_VERSION}. "
                "Use the hubbot that wrote it, or make the release again with this one."
            )
            raise BadRecord(msg)
        wire = RecordJson.model_validate_json(data)
    except ValidationError as error:
        raise BadRecord(_explain(error, origin)) from None
    names = [variant.name for variant in wire.variants]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        msg = f"{origin} lists {', '.join(twice)} more than once; a variant has one entry. Make the record again."
        raise BadRecord(msg)
    return wire


def _explain(error: ValidationError, origin: str) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    shown = [
        f"{'.'.join(str(part)[:60] for part in found['loc']) or 'the file'}: {found['msg'][:200]}"
        for found in problems[:3]
    ]
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"{origin} is no sound record: {'; '.join(shown)}{more}. `hubbot schema` prints what it must be."


def _variant(values: dict[str, Any]) -> VariantRecord:
    score = {name: values.pop(name) for name in _SCORE}
    check, speed = values["load_check"], values["speed"]
    return VariantRecord(
        **values
        | {
            "files": tuple(File(**file) for file in values["files"]),
            "samples": tuple(Sample(**sample) for sample in values["samples"]),
            "load_check": LoadCheck(**check) if check else None,
            "images": tuple(ImageCheck(**image) for image in values["images"]),
            "trials": tuple(Trial(**trial) for trial in values["trials"]),
            "speed": Speed(**_numbers(speed)) if speed else None,
            "layer_errors": _numbers(values["layer_errors"]),
            "score": _score(score),
        }
    )


def _conversations(values: dict[str, Any]) -> Conversations:
    scores = {name: _score(one) for name, one in values["scores"].items()}
    return Conversations(
        text=TextRecord(**values["text"]),
        base=Perplexity(**_numbers(values["base"])),
        scores={name: score for name, score in scores.items() if score},
    )


def _score(values: dict[str, Any]) -> Score | None:
    """None when nothing was measured; a number missing beside others was measured and not finite."""
    if all(value is None for value in values.values()):
        return None
    kld = values.pop("kld") or dict.fromkeys(field.name for field in fields(Divergence))
    windows = values.pop("windows")
    intervals = {name: values.pop(name) for name in ("ratio_interval", "kld_interval")}
    return Score(
        **_numbers(values),
        **intervals,
        kld=Divergence(**_numbers(kld)),
        windows=WindowMeans(**windows) if windows else None,
    )


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in values.items()}
