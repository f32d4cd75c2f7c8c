"""Searching and describing repositories."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from tests.hub import cards
from tests.hub.app import REPO, REV, Answer, Call, page, route
from tests.hub.files import described
from tests.hub.refusal import Refusal
from tests.hub.store import Commit, Repo

FIELDS = (
    "author baseModels cardData childrenModelCount config createdAt disabled downloads downloadsAllTime evalResults gated "
    "gguf inference inferenceProviderMapping lastModified library_name likes mask_token model-index pipeline_tag private "
    "resourceGroup safetensors sha siblings spaces tags transformersInfo trendingScore usedStorage widgetData "
    "citation description paperswithcode_id runtime sdk"
).split()
ORDERS = ("lastModified", "createdAt", "downloads", "likes", "trendingScore")
PAGE = 1000


def facts(call: Call, repo: Repo, commit: Commit) -> dict[str, Any]:
    """What the Hub reads out of a commit's files; computed once for each commit."""
    if commit.id not in repo.derived:
        repo.derived[commit.id] = _facts(call, commit)
    return repo.derived[commit.id]


def _facts(call: Call, commit: Commit) -> dict[str, Any]:
    blobs, files = call.hub.blobs, commit.files
    card: dict[str, Any] = {}
    if "README.md" in files:
        try:
            found = cards.front_matter(blobs.read(files["README.md"].sha256).decode("utf-8", "replace"))
            card = found if isinstance(found, dict) else {}
        except (yaml.YAMLError, ValueError, RecursionError):
            card = {}
    config: dict[str, Any] = {}
    if "config.json" in files and files["config.json"].size < 1_000_000:
        try:
            found = json.loads(blobs.read(files["config.json"].sha256))
            config = {key: found[key] for key in ("architectures", "model_type", "quantization_config") if key in found}
        except (ValueError, TypeError, RecursionError):
            config = {}
    weights = [
        blobs.path(e.sha256) for path, e in sorted(files.items()) if path.endswith(".safetensors") and "/" not in path
    ]
    library = card.get("library_name") or ("transformers" if config.get("architectures") else None)
    return {
        "cardData": card or None,
        "config": config,
        "tags": cards.tags_of({**card, "library_name": library}, list(files)),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": library,
        "safetensors": cards.safetensors_numbers(weights),
    }


def described_repo(call: Call, repo: Repo, commit: Commit, *, blobs: bool = False) -> dict[str, Any]:
    """Every field that is known of a repo."""
    known = facts(call, repo, commit)
    card = dict(known["cardData"] or {})
    siblings = []
    for path, entry in sorted(commit.files.items()):
        item: dict[str, Any] = {"rfilename": path}
        if blobs:
            full = described(path, entry)
            item |= {"size": entry.size, "blobId": entry.blob_id}
            if entry.lfs:
                item["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": full["lfs"]["pointerSize"]}
        siblings.append(item)
    found = {
        **known,
        "_id": f"id-{repo.id}",
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": commit.id,
        "lastModified": repo.modified,
        "createdAt": repo.created,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": repo.disabled,
        "downloads": repo.downloads,
        "downloadsAllTime": repo.downloads,
        "likes": repo.likes,
        "trendingScore": repo.trending,
        "model-index": card.pop("model-index", None),
        "spaces": [],
        "siblings": siblings,
        "usedStorage": sum(entry.size for entry in commit.files.values()),
    }
    found["cardData"] = card or None
    return {key: value for key, value in found.items() if value is not None}


def chosen(call: Call, found: dict[str, Any], default: tuple[str, ...] | None) -> dict[str, Any]:
    wanted = call.args("expand")
    wrong = [name for name in wanted if name not in FIELDS]
    if wrong:
        raise Refusal(400, f'"expand" must be one of [{", ".join(FIELDS)}]')
    if not wanted and default is None:
        return {key: value for key, value in found.items() if key not in ("trendingScore", "downloadsAllTime")}
    names = {"_id", "id", "modelId", *(wanted or default or ())}
    return {key: value for key, value in found.items() if key in names}


@route("GET", REPO + r"(?:/revision/" + REV + ")?")
async def info(call: Call) -> Answer:
    moved = call.hub.store.moved.get((call.kind, call["repo"]))
    if moved:
        where = call.request.raw_path.replace(call.match["repo"], moved, 1)
        return Answer(status=307, headers={"Location": where}, content=b"")
    repo = call.repo()
    commit = repo.commit_at(call["rev"] if call.match.get("rev") else "main")
    found = chosen(call, described_repo(call, repo, commit, blobs=call.flag("blobs")), None)
    return Answer(found, headers={"X-Repo-Commit": commit.id})


SHORT = (
    "author private gated downloads likes tags pipeline_tag library_name createdAt lastModified trendingScore".split()
)


@route("GET", r"/api/(?P<kinds>models|datasets|spaces)")
async def listed(call: Call) -> Answer:
    author = call.arg("author")
    known = call.hub.store.owned.get(author.lower(), {}) if author else call.hub.store.repos
    repos = [repo for (kind, _), repo in known.items() if kind == call.kind and _wanted(call, repo)]
    order = call.arg("sort") or "trendingScore"
    if order not in ORDERS:
        raise Refusal(400, f'"sort" must be one of [{", ".join(ORDERS)}]')
    fields = {"lastModified": "modified", "createdAt": "created", "trendingScore": "trending"}
    repos.sort(key=lambda repo: (getattr(repo, fields.get(order, order)), repo.created), reverse=True)
    limit = min(int(call.arg("limit") or PAGE), call.hub.page_size)
    answer = page(call, repos, limit)
    names = [*SHORT]
    if call.flag("full"):
        names += ["sha", "siblings", "disabled"]
    if call.flag("config"):
        names.append("config")
    if call.flag("cardData"):
        names.append("cardData")
    answer.value = [
        chosen(call, described_repo(call, repo, repo.commit_at("main")), tuple(names)) for repo in answer.value
    ]
    return answer


def _wanted(call: Call, repo: Repo) -> bool:
    if not call.hub.rights.may_read(call.token, repo) or repo.disabled:
        return False
    search = call.arg("search")
    if search and not all(word in repo.id.lower() for word in search.lower().split()):
        return False
    gated = call.arg("gated")
    if gated is not None and bool(repo.gated) != (gated.lower() in ("1", "true")):
        return False
    return _tagged(call, repo)


def _tagged(call: Call, repo: Repo) -> bool:
    filters = [word for value in call.args("filter") for word in value.split(",") if word]
    pipeline, size = call.arg("pipeline_tag"), call.arg("num_parameters")
    if not (filters or pipeline or size):
        return True
    known = facts(call, repo, repo.commit_at("main"))
    if pipeline and known["pipeline_tag"] != pipeline:
        return False
    if size and not _in_range(size, (known["safetensors"] or {}).get("total")):
        return False
    return all(word in known["tags"] for word in filters)


def _in_range(text: str, total: int | None) -> bool:
    """`min:6B,max:128B` as the Hub writes it."""
    if total is None:
        return False
    units = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
    for side, number, unit in re.findall(r"(min|max):([\d.]+)([KMBT]?)", text):
        bound = float(number) * units[unit]
        if (side == "min" and total < bound) or (side == "max" and total > bound):
            return False
    return True


@route("GET", r"/api/collections/(?P<slug>[^/]+/[^/]+)")
async def collection(call: Call) -> Answer:
    found = call.hub.collections.get(call["slug"])
    if found is None:
        raise Refusal(404, "Collection not found")
    items = []
    for index, repo_id in enumerate(found["items"]):
        item = {"_id": f"item-{index}", "id": repo_id, "type": "model", "position": index}
        if repo := call.hub.find("model", repo_id):
            item |= {"author": repo.namespace, "lastModified": repo.modified, "downloads": repo.downloads}
        items.append(item)
    owner = {"_id": "id", "name": call["slug"].split("/")[0], "type": "org"}
    return Answer(
        {
            "slug": call["slug"],
            "title": found["title"],
            "owner": owner,
            "items": items,
            "lastUpdated": found["updated"],
            "position": 0,
            "private": False,
            "theme": "green",
            "upvotes": 0,
        }
    )
