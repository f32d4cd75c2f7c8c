"""Reading: trees, path info, resolve, the storage."""

from __future__ import annotations

import hashlib
import re
from typing import Any
from urllib.parse import parse_qsl, quote

from tests.hub.app import REPO, REV, Answer, Call, page, route
from tests.hub.commits import storage_only
from tests.hub.refusal import Refusal, no_entry
from tests.hub.store import Commit, Entry, Repo


def described(path: str, entry: Entry) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.blob_id}
    if entry.lfs:
        item["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 120 + len(str(entry.size))}
    return item


def last_commit(repo: Repo, head: Commit, path: str) -> dict[str, str]:
    """The newest commit that gave a path, or something under it, its present content."""

    def content(commit: Commit) -> Any:
        return {name: e.sha256 for name, e in commit.files.items() if name == path or name.startswith(path + "/")}

    wanted, found = content(head), head
    for commit in repo.history(head.id):
        if content(commit) != wanted:
            break
        found = commit
    return {"id": found.id, "title": found.title, "date": found.date}


def folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def listing(files: dict[str, Entry], under: str, *, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{under}/" if under else ""
    items: dict[str, dict[str, Any]] = {}
    for path in sorted(files):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            name = prefix + "/".join(parts[:depth])
            items.setdefault(name, folder(name))
            if not recursive:
                break
        if recursive or len(parts) == 1:
            items[path] = described(path, files[path])
    return list(items.values())


@route("GET", REPO + r"/tree/" + REV + r"(?:/(?P<path>.*))?")
async def tree(call: Call) -> Answer:
    repo = call.repo()
    commit = repo.commit_at(call["rev"])
    under = call["path"].strip("/") if call.match.get("path") else ""
    items = listing(dict(commit.files), under, recursive=call.flag("recursive"))
    if under and not items:
        raise no_entry(under, commit.id)
    if call.flag("expand"):
        for item in items:
            item["lastCommit"] = last_commit(repo, commit, item["path"])
    answer = page(call, items, int(call.arg("limit") or (50 if call.flag("expand") else 1000)))
    answer.headers["X-Repo-Commit"] = commit.id
    return answer


@route("POST", REPO + r"/paths-info/" + REV)
async def paths_info(call: Call) -> Answer:
    repo = call.repo()
    commit = repo.commit_at(call["rev"])
    pairs = parse_qsl((await call.request.read()).decode(), keep_blank_values=True)
    paths = [value for key, value in pairs if key == "paths"]
    if len(paths) > 1000:
        raise Refusal(413, "Too many paths")
    expand = dict(pairs).get("expand", "").lower() in ("1", "true")
    found = []
    for path in (path.rstrip("/") for path in paths):
        if path in commit.files:
            found.append(described(path, commit.files[path]))
        elif any(name.startswith(f"{path}/") for name in commit.files):
            found.append(folder(path))
    if expand:
        for item in found:
            item["lastCommit"] = last_commit(repo, commit, item["path"])
    return Answer(found)


RESOLVE = r"/(?P<kinds>datasets/|spaces/)?(?P<repo>[^/]+/[^/]+)/(?:resolve|raw)/" + REV + r"/(?P<path>.+)"


@route("GET", RESOLVE)
async def resolve(call: Call) -> Answer:
    moved = call.hub.store.moved.get((call.kind, call["repo"]))
    if moved:
        prefix = call.match.get("kinds") or ""
        rest = call.request.raw_path.split("/resolve/", 1)[1]
        return Answer(status=307, headers={"Location": f"/{prefix}{moved}/resolve/{rest}"}, content=b"")
    repo = call.repo()
    call.hub.rights.need_files(call.token, repo)
    commit = repo.commit_at(call["rev"])
    path = call["path"]
    entry = commit.files.get(path)
    if entry is None:
        raise no_entry(path, commit.id)
    headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
    if call.request.headers.get("X-HF-Download-Counter") or call.request.method == "GET":
        repo.downloads += 1
    linked = {**headers, "X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.oid}"'}
    if entry.lfs:
        url = call.hub.signed(f"blob/{entry.sha256}")
        return Answer(status=302, headers={**linked, "Location": url}, content=b"")
    kinds = (call.match.get("kinds") or "models/").strip("/")
    where = f"/api/resolve-cache/{kinds}/{repo.id}/{commit.id}/{quote(path, safe='')}"
    return Answer(status=307, headers={**linked, "ETag": f'"{entry.oid}"', "Location": where}, content=b"")


@route("GET", r"/api/resolve-cache/(?P<kinds>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)/" + REV + r"/(?P<path>.+)")
async def resolve_cache(call: Call) -> Answer:
    repo = call.repo()
    call.hub.rights.need_files(call.token, repo)
    commit = repo.commit_at(call["rev"])
    entry = commit.files.get(call["path"])
    if entry is None:
        raise no_entry(call["path"], commit.id)
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{entry.oid}"'}
    return stretch(call, entry.sha256, entry.size, headers)


@route("GET", r"/storage/blob/(?P<oid>[0-9a-f]{64})")
async def storage(call: Call) -> Answer:
    storage_only(call)
    path = call.hub.blobs.path(call["oid"])
    return stretch(call, call["oid"], path.stat().st_size, {"ETag": f'"{call["oid"][:32]}"'})


def stretch(call: Call, sha256: str, size: int, headers: dict[str, str]) -> Answer:
    """The whole content, or the one range that was asked for."""
    headers = {"Accept-Ranges": "bytes", **headers}
    file = call.hub.blobs.path(sha256)
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.request.headers.get("Range", ""))
    if not asked or not (asked[1] or asked[2]):
        return Answer(headers=headers, file=file, size=size)
    if asked[1]:
        start, stop = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else size, size)
    else:
        start, stop = max(0, size - int(asked[2])), size
    if start >= size or stop <= start:
        raise Refusal(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Answer(status=206, headers=headers, file=file, start=start, size=stop - start)
