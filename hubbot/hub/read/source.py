"""A model from the Hub or from a folder: found, pinned to a commit, fetched whole or by its headers alone."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hubbot.domain import HUB_ID, Source
from hubbot.errors import BudgetExceeded, SourceNotFound, SourceRefused, UnsafeSource
from hubbot.hub.client import Hub
from hubbot.hub.read.contents import LARGEST_TEXT, RemoteFile, needed_files
from hubbot.hub.read.download import Progress, Repo, fetch_files, read_range
from hubbot.hub.read.local import is_local, local_source
from hubbot.hub.read.reader import Reader
from hubbot.hub.read.shapes import entries, mapping, number, text
from hubbot.model.snapshot import plain_name
from hubbot.settings.sections import format_size

__all__ = ["Found", "fetch", "fetch_headers", "resolve"]

LARGEST_HEADER = 100_000_000  # bytes; the safetensors library reads no larger one
_SHA = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A model of the Hub at one commit: what is needed of it, and what the Hub says about it."""

    repo: str
    revision: str  # full sha
    files: tuple[RemoteFile, ...]
    license: str | None
    license_name: str | None
    license_link: str | None
    gated: bool
    language: tuple[str, ...]
    pipeline_tag: str | None
    tags: tuple[str, ...]
    architecture: str
    parameters: int

    @property
    def bytes(self) -> int:
        """What a fetch takes on the disk."""
        return sum(file.size for file in self.files)


def resolve(model: str, hub: Hub, *, revision: str | None = None, allow_pickle: bool = False) -> Found:
    """Find a model on the Hub and pin it to a commit; nothing is downloaded but a sharded checkpoint's index.

    revision: branch, tag or commit; None: main.
    Raises SourceNotFound, SourceRefused (pickles only, unfinished), UnsafeSource, TokenRefused, HubFailed.
    """
    if not HUB_ID.fullmatch(model):
        msg = f"{model[:200]!r} is neither a folder nor a Hub id. Write org/name, or the path of a folder that exists."
        raise SourceNotFound(msg)
    info = _info(Reader(hub), model, revision)
    if info.get("disabled") is True:
        raise SourceRefused(f"{model} is disabled on the Hub. Choose another source.")
    repo = Repo(id=model, revision=str(info.get("sha")), hub=hub)
    if not _SHA.fullmatch(repo.revision):
        raise SourceRefused(f"The Hub names no commit of {model}. An empty repo holds no model.")
    files = needed_files(
        _listed(info), lambda file: read_range(repo, file.path, 0, file.size), allow_pickle=allow_pickle
    )
    return _found(repo, files, info)


def _info(reader: Reader, model: str, revision: str | None) -> dict[str, Any]:
    path = f"/api/models/{model}" + (f"/revision/{quote(revision, safe='')}" if revision else "")
    try:
        body = reader.get(path, {"blobs": "true"}).body
    except SourceNotFound:
        what = f"{model} at {revision!r}" if revision else model
        hint = "" if reader.hub.token else " A private one needs a token in HF_TOKEN."
        msg = f"The Hub has no {what}, or hides it from this token. Check the name, the revision and the token's access.{hint}"
        raise SourceNotFound(msg) from None
    return body if isinstance(body, dict) else {}


def _listed(info: dict[str, Any]) -> list[RemoteFile]:
    """The files that the Hub lists; names that could lead out of a folder are refused."""
    files = []
    for item in map(mapping, entries(info.get("siblings"))):
        path, large = str(item.get("rfilename")), mapping(item.get("lfs"))
        if not all(plain_name(part) or (part.startswith(".") and part not in (".", "..")) for part in path.split("/")):
            raise UnsafeSource(f"The repo lists {path[:200]!a}, which is no plain path inside a folder.")
        size = large.get("size", item.get("size"))
        if number(size) is None:
            raise SourceRefused(f"The Hub gives no size for {path}. Run it again later.")
        if text(large.get("sha256")) is None and text(item.get("blobId")) is None:
            raise SourceRefused(
                f"The Hub gives no hash for {path}, so that it could not be checked. Run it again later."
            )
        files.append(
            RemoteFile(path=path, size=size, sha256=text(large.get("sha256")), blob_id=text(item.get("blobId")))
        )
    return files


def _found(repo: Repo, files: tuple[RemoteFile, ...], info: dict[str, Any]) -> Found:
    card, config = mapping(info.get("cardData")), mapping(info.get("config"))
    return Found(
        repo=repo.id,
        revision=repo.revision,
        files=files,
        license=next(iter(_words(card.get("license"))), None),
        license_name=next(iter(_words(card.get("license_name"))), None),
        license_link=next(iter(_words(card.get("license_link"))), None),
        gated=bool(info.get("gated")),
        language=_words(card.get("language")),
        pipeline_tag=next(iter(_words(info.get("pipeline_tag"))), None),
        tags=_words(card.get("tags")),
        architecture=next(iter(_words(config.get("architectures"))), ""),
        parameters=number(mapping(info.get("safetensors")).get("total")) or 0,
    )


def _words(value: Any) -> tuple[str, ...]:
    """The short texts in a field that holds one or several."""
    values = value if isinstance(value, list) else [value]
    return tuple(word for word in values[:100] if isinstance(word, str) and 0 < len(word) <= 500)


def fetch(
    model: str,
    hub: Hub,
    *,
    revision: str | None = None,
    into: Path,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Source:
    """A model as a folder: of the Hub, fetched into `into`, or a local one, where it lies.

    Every file is hashed and compared with the Hub's sha256 or git id; a broken fetch goes on where it
    stopped when it is asked for again. Licence, tags and architecture are the Hub's word; a local
    folder's are left to the intake.
    Raises what `resolve` raises, and BudgetExceeded where the disk has too little room.
    """
    if is_local(model):
        return local_source(Path(model).expanduser(), into, revision)
    found = resolve(model, hub, revision=revision, allow_pickle=allow_pickle)
    into.mkdir(parents=True, exist_ok=True)
    _need_room(found, into)
    repo = Repo(id=found.repo, revision=found.revision, hub=hub)

    hashes = fetch_files(repo, found.files, into, progress=progress)
    _forget_others(into, hashes)
    return _source(found, into, hashes)


def _forget_others(into: Path, wanted: Iterable[str]) -> None:
    """Remove what an earlier revision has left: the folder must hold this commit's files and no others."""
    kept = set(wanted)
    shutil.rmtree(into / ".unfinished", ignore_errors=True)
    for path in sorted(into.rglob("*")):
        if path.is_file() and path.relative_to(into).as_posix() not in kept:
            path.unlink()


def _need_room(found: Found, into: Path) -> None:
    have = sum(path.stat().st_size for path in into.rglob("*") if path.is_file() and not path.is_symlink())
    missing, free = found.bytes - have, shutil.disk_usage(into).free
    if missing > free:
        msg = f"{found.repo} needs {format_size(missing)} in {into}, where {format_size(free)} are free. Make room, or choose another folder with --out."
        raise BudgetExceeded(msg)


def _source(found: Found, folder: Path, hashes: dict[str, str]) -> Source:
    return Source(
        folder=str(folder.resolve()),
        repo=found.repo,
        revision=found.revision,
        files=dict(sorted(hashes.items())),
        license=found.license,
        license_name=found.license_name,
        license_link=found.license_link,
        gated=found.gated,
        architecture=found.architecture,
        parameters=found.parameters,
        language=found.language,
        pipeline_tag=found.pipeline_tag,
        tags=found.tags,
    )


def fetch_headers(
    model: str,
    hub: Hub,
    *,
    revision: str | None = None,
    into: Path,
    allow_pickle: bool = False,
    hashed: bool = True,
) -> Source:
    """Like `fetch`, but of each safetensors file only its header; the data is a hole in a sparse file.

    Enough to plan with: every name, dtype and shape is there. The sha256 of the large files are the Hub's word;
    hashed: whether those of a local folder are worked out, which a plan has no use for.
    """
    if is_local(model):
        return local_source(Path(model).expanduser(), into, revision, hashed=hashed)
    found = resolve(model, hub, revision=revision, allow_pickle=allow_pickle)
    repo = Repo(id=found.repo, revision=found.revision, hub=hub)
    into.mkdir(parents=True, exist_ok=True)
    hashes, whole = {}, []
    for file in found.files:
        if file.path.endswith(".safetensors") and file.sha256 is not None:
            _write_sparse(into / file.path, file, _header(repo, file))
            hashes[file.path] = file.sha256
        elif file.is_weights and file.size > LARGEST_TEXT:
            raise SourceRefused(
                f"{file.path} is a pickle, whose tensors cannot be seen before it is fetched whole. Use `hubbot run`."
            )
        else:
            whole.append(file)
    hashes |= fetch_files(repo, whole, into, progress=None)
    _forget_others(into, hashes)
    return _source(found, into, hashes)


def _header(repo: Repo, file: RemoteFile) -> bytes:
    """The length and the JSON header of a safetensors file of the Hub."""
    if file.size < 8:
        raise UnsafeSource(f"{file.path} has {file.size} bytes; a safetensors file begins with 8 bytes of length.")
    first = read_range(repo, file.path, 0, min(file.size, 64 * 1024))
    length = int.from_bytes(first[:8], "little")
    if length > LARGEST_HEADER or 8 + length > file.size:
        limit = min(LARGEST_HEADER, file.size - 8)
        msg = f"{file.path} claims a header of {length:,} bytes; at most {limit:,} are possible. The file is damaged or hostile."
        raise UnsafeSource(msg)
    if 8 + length <= len(first):
        return first[: 8 + length]
    return first + read_range(repo, file.path, len(first), 8 + length)


def _write_sparse(path: Path, file: RemoteFile, header: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(file.size)
