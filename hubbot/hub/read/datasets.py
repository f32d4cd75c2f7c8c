"""The texts that a model is calibrated and evaluated on: streamed from the Hub, or local files."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hubbot.confine.ask import NoAnswer, ask
from hubbot.confine.environment import NETWORK, allowed
from hubbot.domain import HUB_ID, Text
from hubbot.errors import BadText, HubbotError, HubFailed, SourceNotFound
from hubbot.hub.client import Hub
from hubbot.hub.read.reader import Reader
from hubbot.hub.read.rows import EMPTY, Kind, Row, as_line, as_row, length
from hubbot.hub.retry import TransientFailure
from hubbot.log.redact import redact
from hubbot.machine.shortage import translated_shortages
from hubbot.model.digests import file_digest
from hubbot.settings import CalibrationSettings, ConversationSettings, EvaluationSettings

__all__ = ["fetch_text", "size_of_local"]

TextSettings = CalibrationSettings | EvaluationSettings | ConversationSettings

_SUFFIXES = (".txt", ".jsonl", ".parquet")
_PACKED = 3  # bytes of text in a byte of parquet, at most
_LIMIT = 1800  # seconds that streaming may take
_ATTEMPTS = 4  # at streaming, which begins anew each time


def fetch_text(section: TextSettings, hub: Hub, *, into: Path, characters: int | None) -> Text:
    """The text or the conversations that a section of the settings names, as a file in `into`; nothing is fetched twice.

    characters: rows are read until there are that many; None: the whole split or file (at most 2^28).
    Rows keep their text as it is, the empty ones too: wikitext is joined with blank lines between all of them.
    Raises BadText: missing, empty, no such column, split or configuration; TokenRefused, HubFailed.
    """
    path = Path(section.dataset).expanduser()
    with translated_shortages(into):
        into.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in _SUFFIXES or path.is_file():
            return _local(path, section, into, characters)
        return _streamed(section, into, characters, hub)


def size_of_local(section: TextSettings) -> int | None:
    """Bytes of the text of a local file, about; None where there is none."""
    path = Path(section.dataset).expanduser()
    if not path.is_file():
        return None
    packed = _PACKED if path.suffix.lower() == ".parquet" else 1
    return packed * path.stat().st_size


# --- local --------------------------------------------------------------------------------------------


def _local(path: Path, section: TextSettings, into: Path, characters: int | None) -> Text:
    if path.suffix.lower() not in _SUFFIXES:
        raise BadText(f"{path} is no text that hubbot reads. Give a .txt, .jsonl or .parquet file, or a Hub dataset.")
    if not path.is_file():
        raise BadText(f"{path} does not exist. Name a file that does, or a Hub dataset such as allenai/c4.")
    out = into / f"{_slug(path.stem)}-{_digest(str(path.resolve()), section.column, characters)}.jsonl"
    total = 0
    with out.open("w", encoding="utf-8") as stream:
        for row in _rows(path, section.column, _kind(section)):
            stream.write(as_line(row))
            total += length(row, bare=True)
            if characters is not None and total >= characters:
                break
    if not total:
        out.unlink()
        raise BadText(f"{path} holds no text. Give a file with some.")
    return Text(path=out, name=path.name, revision=None, sha256=file_digest(out))


def _kind(section: TextSettings) -> Kind:
    return "messages" if isinstance(section, ConversationSettings) else "text"


def _rows(path: Path, column: str, kind: Kind) -> Iterator[Row]:
    try:
        match path.suffix.lower():
            case ".txt" if kind == "messages":
                raise BadText(
                    f"{path} holds no conversations. Give a .jsonl or .parquet file with a column of messages."
                )
            case ".txt":
                yield path.read_text(encoding="utf-8")
            case ".jsonl":
                yield from _json_rows(path, column, kind)
            case _:
                yield from _parquet_rows(path, column, kind)
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> BadText:
    return BadText(f"{path} cannot be read as {path.suffix}: {str(error)[:200]}. Text has to be UTF-8.")


def _json_rows(path: Path, column: str, kind: Kind) -> Iterator[Row]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise BadText(f"{path}, line {number}, is no JSON. Every line has to be one object.") from None
            found = as_row(row.get(column), kind) if isinstance(row, dict) else None
            if found is None:
                have = sorted(row)[:20] if isinstance(row, dict) else type(row).__name__
                raise BadText(
                    f"{path}, line {number}, has no {kind} under {column!r} (found {have}). Name the column with `column`."
                )
            yield found


def _parquet_rows(path: Path, column: str, kind: Kind) -> Iterator[Row]:
    import pyarrow.parquet  # which every other text does without

    try:
        yield from _parquet_cells(pyarrow.parquet.ParquetFile(path), path, column, kind)
    except pyarrow.ArrowException as error:
        raise _unreadable(path, error) from None


def _parquet_cells(file: Any, path: Path, column: str, kind: Kind) -> Iterator[Row]:
    if column not in file.schema_arrow.names:
        raise BadText(
            f"{path} has no column {column!r} (found {file.schema_arrow.names[:20]}). Name one with `column`."
        )
    held = file.schema_arrow.field(column).type
    for batch in file.iter_batches(columns=[column]):
        for cell in batch.column(0).to_pylist():
            found = as_row(EMPTY[kind] if cell is None else cell, kind)
            if found is None:
                raise BadText(f"The column {column!r} of {path} holds {held}, not {kind}. Name another with `column`.")
            yield found


# --- the Hub ------------------------------------------------------------------------------------------


def _streamed(section: TextSettings, into: Path, characters: int | None, hub: Hub) -> Text:
    if not HUB_ID.fullmatch(section.dataset):
        raise BadText(
            f"{section.dataset[:200]!r} is neither a file nor a Hub dataset. Write org/name, or the path of a .txt, .jsonl or .parquet file."
        )
    revision = _pinned(section, hub)
    name = ":".join(part for part in (section.dataset, section.config, section.split) if part)
    digest = _digest(hub.endpoint, name, revision, section.column, characters)
    out = into / f"{_slug(name)}-{digest}.jsonl"
    if not out.exists():
        partial = out.with_suffix(".part")
        request = {
            "dataset": section.dataset,
            "config": section.config,
            "split": section.split,
            "revision": revision,
            "column": section.column,
            "kind": _kind(section),
            "token": hub.token,
            "characters": characters,
            "out": str(partial),
        }
        retry = replace(hub.retry, attempts=min(hub.retry.attempts, _ATTEMPTS))
        retry(lambda: _stream(request, name, into, hub.endpoint))
        partial.replace(out)
    return Text(path=out, name=name, revision=revision, sha256=file_digest(out))


def _pinned(section: TextSettings, hub: Hub) -> str:
    """The commit that the dataset's revision stands for now."""
    at = f"/revision/{quote(section.revision, safe='')}" if section.revision else ""
    try:
        body = Reader(hub).get(f"/api/datasets/{section.dataset}{at}").body
    except SourceNotFound:
        what = f"{section.dataset} at {section.revision!r}" if section.revision else section.dataset
        raise BadText(
            f"The Hub has no dataset {what}, or hides it from this token. Check its name, or give a local file."
        ) from None
    sha = body.get("sha") if isinstance(body, dict) else None
    if not isinstance(sha, str):
        raise HubFailed(f"The Hub names no commit of the dataset {section.dataset}. Run it again later.")
    return sha


def _stream(request: dict[str, Any], name: str, into: Path, endpoint: str) -> None:
    answer = _child(request, into, endpoint)
    if not answer.get("characters"):
        raise _translated_answer(answer, request, name, endpoint)


def _child(request: dict[str, Any], into: Path, endpoint: str) -> dict[str, Any]:
    """Run hubbot.hub.read.stream: no secret in its environment, a home of its own, the Hub's address."""
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(into / ".client"), "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    command, environment = [sys.executable, "-m", "hubbot.hub.read.stream"], allowed(more=NETWORK) | own
    try:
        told = ask(command, json.dumps(request).encode(), seconds=_LIMIT, environment=environment)
        answer = json.loads(told.splitlines()[-1])
    except NoAnswer as error:
        return {"message": redact(f"its reader {error}", request["token"]), "transient": error.late}
    except (IndexError, ValueError):
        return {"message": "its reader gave no answer"}
    return answer if isinstance(answer, dict) else {}


def _translated_answer(answer: dict[str, Any], request: dict[str, Any], name: str, endpoint: str) -> HubbotError:
    if answer.get("full"):
        raise OSError(errno.ENOSPC, "no room for the text")
    text = redact(" ".join(str(answer.get("message", "")).split())[:600], request["token"])
    if "columns" in answer:
        return BadText(
            f"{name} has no column {request['column']!r} (found {', '.join(answer['columns'][:20])}). Name one with `column`."
        )
    if "type" in answer:
        return BadText(
            f"The column {request['column']!r} of {name} holds {answer['type']}, not {request['kind']}. Name another with `column`."
        )
    if "characters" in answer:
        return BadText(f"{name} holds no text. Choose another split or dataset.")
    if answer.get("transient"):
        return TransientFailure(
            f"{name} could not be streamed from {endpoint}: {text}. Run it again later, or give a local file."
        )
    if answer.get("status") in (401, 403) or "gated" in text.lower():
        return BadText(
            f"{name} is not open to this token. Accept its terms at {endpoint}/datasets/{request['dataset']}, or give a local file."
        )
    return BadText(
        f"{name} could not be read: {text} Check the configuration, the split and the column, or give a local file."
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:80]
