"""Lists of models as the Hub gives them, a hundred a request, and what of each matters to us."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any
from urllib.parse import quote

from hubbot.domain import REPO_ID
from hubbot.errors import HubFailed, SourceNotFound
from hubbot.hub.read.reader import Page, Params, Reader
from hubbot.hub.read.shapes import entries, mapping, number, text
from hubbot.hub.seen import Candidate, Contents
from hubbot.record.file import FILE_NAME
from hubbot.record.fingerprint import matters
from hubbot.settings.watch import SearchSettings

PAGE = 100  # models a request
_FIELDS = (
    "sha lastModified createdAt private disabled gated downloads likes tags library_name pipeline_tag "
    "config cardData safetensors"
).split()

_SHA = re.compile(r"[0-9a-f]{40}")
# Bytes a weight by the Hub's name of its dtype.
_WIDTH = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def author_query(author: str) -> Params:
    return {"author": author, "sort": "lastModified", "limit": PAGE, "expand": _FIELDS}


def search_query(search: SearchSettings) -> Params:
    query: dict[str, Any] = {
        "sort": "trendingScore" if search.trending else "lastModified",
        "limit": min(PAGE, search.limit),
        "expand": _FIELDS,
    }
    filters = [*search.tag, *([search.library] if search.library else [])]
    if filters:
        query["filter"] = filters
    if search.text:
        query["search"] = search.text
    if search.pipeline:
        query["pipeline_tag"] = search.pipeline
    return query


def pages(reader: Reader, query: Params, *, etag: str | None = None, resume: str | None = None) -> Iterator[Page]:
    """The pages of a list of models, the newest first; a single page without body where nothing changed."""
    return reader.pages(resume) if resume else reader.pages("/api/models", query, etag=etag)


def candidates(page: Page) -> list[Candidate]:
    """The models of a page. Raises HubFailed where it has entries and none of them is a model."""
    found = [one for entry in page.body or () if (one := candidate(entry))]
    if page.body and not found:
        raise HubFailed("The Hub's list of models holds none. Nothing was concluded from it; run it again later.")
    return found


def read_model(reader: Reader, model: str, *, etag: str | None = None) -> tuple[Candidate | None, str | None]:
    """One model and the ETag of the answer; None where it did not change. Raises SourceNotFound."""
    page = reader.get(f"/api/models/{model}", {"expand": _FIELDS}, etag=etag)
    if page.body is None:
        return None, page.etag
    found = candidate(page.body)
    if found is None:
        raise HubFailed(f"The Hub's answer about {model!r} shows no model with a commit. Run it again later.")
    return found, page.etag


def collection(reader: Reader, slug: str, *, etag: str | None = None) -> tuple[dict[str, str] | None, str | None]:
    """The models of a collection with the time each was last modified, and the ETag; None: nothing changed."""
    page = reader.get(f"/api/collections/{quote(slug)}", etag=etag)
    if page.body is None:
        return None, page.etag
    items = page.body.get("items") if isinstance(page.body, dict) else None
    if not isinstance(items, list):
        raise HubFailed(f"The Hub's answer about the collection {slug} has no items. Run it again later.")
    models = {
        name: str(item.get("lastModified") or "")
        for item in map(mapping, entries(items))
        if item.get("type") == "model" and (name := str(item.get("id") or "")) and REPO_ID.fullmatch(name)
    }
    return models, page.etag


def read_contents(reader: Reader, model: str, sha: str, *, tags: bool) -> Contents:
    """The files of a revision that matter to a release; none where the revision is gone.

    tags: ask too whether a tag points at the revision (one request more).
    """
    files: dict[str, str] = {}
    try:
        for item in tree_items(reader, model, sha):
            path = text(item.get("path"))
            if path and item.get("type") == "file" and matters(path):
                large = text(mapping(item.get("lfs")).get("oid"))
                files[path] = f"sha256:{large}" if large else f"blob:{item.get('oid')}"
        tagged = _tagged(reader, model, sha) if tags else None
    except SourceNotFound:
        return Contents(model=model, sha=sha, files={})
    return Contents(model=model, sha=sha, files=files, tagged=tagged)


def tree_items(reader: Reader, model: str, sha: str) -> Iterator[Mapping[str, Any]]:
    """The entries of a revision's tree as the Hub gives them, folders and files."""
    for page in reader.pages(f"/api/models/{model}/tree/{sha}", {"recursive": "true"}):
        yield from map(mapping, page.body or ())


def read_record(reader: Reader, repo: str, sha: str) -> bytes | None:
    """The text of a repo's hubbot.json at a commit, None where it has none."""
    return reader.file(repo, sha, FILE_NAME)


def _tagged(reader: Reader, model: str, sha: str) -> bool:
    tags = mapping(reader.get(f"/api/models/{model}/refs").body).get("tags")
    if not isinstance(tags, list):
        raise HubFailed(f"The Hub's answer about the tags of {model} has none. Run it again later.")
    return any(mapping(tag).get("targetCommit") == sha for tag in tags)


def candidate(info: Any) -> Candidate | None:
    """What a listing says of one model; None for an entry without a usable name or commit."""
    if not isinstance(info, dict):
        return None
    name, sha = str(info.get("id") or ""), str(info.get("sha") or "")
    if not REPO_ID.fullmatch(name) or not _SHA.fullmatch(sha):
        return None
    tags = tuple(tag for tag in entries(info.get("tags")) if isinstance(tag, str))
    card = mapping(info.get("cardData"))
    config = mapping(info.get("config"))
    parameters, weight_bytes = _weights(mapping(info.get("safetensors")))
    return Candidate(
        id=name,
        sha=sha,
        modified=str(info.get("lastModified") or ""),
        created=str(info.get("createdAt") or ""),
        private=bool(info.get("private")),
        disabled=bool(info.get("disabled")),
        gated=bool(info.get("gated")),
        downloads=number(info.get("downloads")) or 0,
        likes=number(info.get("likes")) or 0,
        tags=tags,
        library=text(info.get("library_name")),
        pipeline=text(info.get("pipeline_tag")),
        architecture=text((entries(config.get("architectures")) or [None])[0]),
        quantization=_quantization(config),
        licence=text(card.get("license")) or _tag(tags, "license:"),
        licence_name=text(card.get("license_name")),
        licence_link=text(card.get("license_link")),
        relation=text(card.get("base_model_relation")),
        base_models=_base_models(card, tags),
        parameters=parameters,
        weight_bytes=weight_bytes,
    )


def account_type(reader: Reader, name: str) -> str:
    """`org` or `user`."""
    try:
        reader.get(f"/api/organizations/{quote(name)}/overview")
    except SourceNotFound:
        return "user"
    return "org"


def created_on_or_after(found: Candidate, day: date | None) -> bool:
    return day is None or found.created >= day.isoformat()


def _weights(safetensors: Mapping[str, Any]) -> tuple[int | None, int | None]:
    by_dtype = {str(k): n for k, v in mapping(safetensors.get("parameters")).items() if (n := number(v)) is not None}
    total = number(safetensors.get("total"))
    if total is None and by_dtype:
        total = sum(by_dtype.values())
    return total, sum(_WIDTH.get(k, 1) * n for k, n in by_dtype.items()) or None


def _quantization(config: Mapping[str, Any]) -> str | None:
    found = config.get("quantization_config")
    return None if not found else str(mapping(found).get("quant_method") or "quantized")[:40]


def _base_models(card: Mapping[str, Any], tags: tuple[str, ...]) -> tuple[str, ...]:
    named = {name for name in entries(card.get("base_model")) if isinstance(name, str)}
    named |= {tag.rsplit(":", 1)[-1] for tag in tags if tag.startswith("base_model:")}
    return tuple(sorted(named))


def _tag(tags: tuple[str, ...], beginning: str) -> str | None:
    return next((tag.removeprefix(beginning) for tag in tags if tag.startswith(beginning)), None)
