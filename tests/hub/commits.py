"""Uploads: card validation, preupload, large files, commits."""

from __future__ import annotations

import base64
import binascii
import hmac
import math
import re
from typing import Any

from tests.hub import cards
from tests.hub.app import REPO, REV, Answer, Call, lines, route
from tests.hub.refusal import Refusal
from tests.hub.store import Discussion, Entry, Repo, remove

STALE = "The branch was updated since you opened this page. Please refresh and try again."
EMPTY = "Add a line with the key `lfsFile`, `file` or `deletedFile`"


@route("POST", r"/api/validate-yaml")
async def validate_yaml(call: Call) -> Answer:
    body = await call.json()
    errors, warnings = cards.validate(body.get("content", ""), body.get("repoType") or "model")
    status = 400 if errors else 200
    if "text/plain" in call.request.headers.get("Accept", ""):
        return Answer(status=status, content="\n".join(errors or warnings).encode())
    named = {
        "errors": [{"message": message} for message in errors],
        "warnings": [{"message": message} for message in warnings],
    }
    return Answer(named, status)


def may_commit(call: Call, revision: str, *, create_pr: bool) -> tuple[Repo, str]:
    """The repo and the full ref that a commit, or a pull request, goes to; refused without the rights."""
    repo = call.repo()
    ref = repo.branch_of(revision)
    if create_pr:
        call.hub.rights.need_discuss(call.token, repo)
    elif ref.startswith("refs/pr/"):
        pull = repo.discussions[int(ref.rsplit("/", 1)[1])]
        call.hub.rights.need_discuss(call.token, repo)
        if pull.author != call.author:
            call.hub.rights.need_write(call.token, repo)
        if pull.status in ("closed", "merged"):
            raise Refusal(403, f"Pull request {pull.num} is {pull.status}")
    else:
        hint = " Pass `create_pr=1` as a query parameter to create a Pull Request."
        call.hub.rights.need_write(call.token, repo, hint=hint)
    return repo, ref


def checked_path(path: Any) -> str:
    if not isinstance(path, str) or not path or path.startswith(("..\\", "/")):
        raise Refusal(422, f"Invalid path {path!r}")
    parts = path.split("/")
    if any(part in ("", ".", "..", ".git") for part in parts):
        raise Refusal(422, f"Invalid path {path!r}")
    return path


@route("POST", REPO + r"/preupload/" + REV)
async def preupload(call: Call) -> Answer:
    repo, ref = may_commit(call, call["rev"], create_pr=call.flag("create_pr"))
    files = (await call.json()).get("files", [])
    if len(files) > 256:
        raise Refusal(413, "Too many files")
    present = repo.commits[repo.refs[ref]].files
    found = []
    for file in files:
        path = checked_path(file["path"])
        sample = base64.b64decode(file["sample"])
        large = call.hub.store.is_large(repo, present, path, file["size"], sample)
        item = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if path in present:
            item["oid"] = present[path].oid
        found.append(item)
    return Answer({"files": found})


# --- large files --------------------------------------------------------------------------------------

GIT = r"/(?P<kinds>datasets/|spaces/)?(?P<repo>[^/]+/[^/]+)\.git"


@route("POST", GIT + r"/info/lfs/objects/batch")
async def lfs_batch(call: Call) -> Answer:
    repo = call.repo()
    body = await call.json()
    if body.get("operation") != "upload" or body.get("hash_algo", "sha256") != "sha256":
        raise Refusal(422, "Only uploads by sha256 are known here")
    call.hub.rights.need_discuss(call.token, repo)
    multipart = "multipart" in body.get("transfers", []) and call.hub.multipart_size is not None
    objects = [_lfs_object(call, repo, item, multipart=multipart) for item in body["objects"]]
    mode = "multipart" if multipart and any(_parts(call, o["size"]) > 1 for o in objects) else "basic"
    headers = {"Content-Type": "application/vnd.git-lfs+json"}
    return Answer({"transfer": mode, "objects": objects}, headers=headers)


def _parts(call: Call, size: int) -> int:
    return math.ceil(size / call.hub.multipart_size) if call.hub.multipart_size else 1


def _lfs_object(call: Call, repo: Repo, item: dict[str, Any], *, multipart: bool) -> dict[str, Any]:
    oid, size = item["oid"], item["size"]
    if not re.fullmatch(r"[0-9a-f]{64}", oid):
        return {"oid": oid, "size": size, "error": {"code": 422, "message": "oid must be a sha256"}}
    if call.hub.blobs.path(oid).exists():
        repo.large.add(oid)
        return {"oid": oid, "size": size}
    prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
    verify = {
        "href": f"{call.base}/{prefix}{repo.id}.git/info/lfs/objects/verify",
        "header": {"Authorization": call.request.headers.get("Authorization", "")},
    }
    parts = _parts(call, size)
    if multipart and parts > 1:
        header = {"chunk_size": str(call.hub.multipart_size)}
        for number in range(1, parts + 1):
            header[f"{number:05d}"] = call.hub.signed(f"part/{oid}/{number}")
        done = f"{call.base}/api/complete_multipart?oid={oid}&parts={parts}&sig={call.hub.signature(f'done/{oid}')}"
        upload = {"href": done, "header": header}
    else:
        upload = {"href": call.hub.signed(f"whole/{oid}")}
    return {"oid": oid, "size": size, "authenticated": True, "actions": {"upload": upload, "verify": verify}}


def storage_only(call: Call) -> None:
    """Presigned URLs live on another host, bear a signature, and want no token."""
    path = call.request.path.removeprefix("/storage/")
    if "Authorization" in call.request.headers:
        call.hub.journal.leaks.append(call.request.raw_path)
        raise Refusal(400, "Only one auth mechanism allowed")
    if call.request.host != call.hub.storage.removeprefix("http://"):
        raise Refusal(403, "SignatureDoesNotMatch: wrong host")
    if not hmac.compare_digest(call.arg("X-Amz-Signature") or "", call.hub.signature(path)):
        raise Refusal(403, "SignatureDoesNotMatch")


@route("PUT", r"/storage/whole/(?P<oid>[0-9a-f]{64})")
async def put_whole(call: Call) -> Answer:
    storage_only(call)
    scratch = await _receive(call)
    if not call.hub.blobs.adopt(scratch, call["oid"]):
        raise Refusal(400, "XAmzContentSHA256Mismatch")
    return Answer(content=b"", headers={"ETag": f'"{call["oid"][:32]}"'})


@route("PUT", r"/storage/part/(?P<oid>[0-9a-f]{64})/(?P<number>\d+)")
async def put_part(call: Call) -> Answer:
    storage_only(call)
    scratch = await _receive(call)
    tag = f'"{call.hub.signature(call["oid"] + call["number"])[:32]}"'
    call.hub.parts[call["oid"], int(call["number"])] = (scratch, tag)
    return Answer(content=b"", headers={"ETag": tag})


async def _receive(call: Call):
    scratch = call.hub.blobs.scratch()
    with scratch.open("wb") as stream:
        async for piece in call.request.content.iter_chunked(1 << 18):
            stream.write(piece)
    wanted = call.request.headers.get("Content-Length")
    if wanted is None or int(wanted) != scratch.stat().st_size:
        raise Refusal(411, "MissingContentLength")
    return scratch


@route("POST", r"/api/complete_multipart")
async def complete(call: Call) -> Answer:
    oid, parts = call.arg("oid") or "", int(call.arg("parts") or 0)
    if call.arg("sig") != call.hub.signature(f"done/{oid}"):
        raise Refusal(403, "SignatureDoesNotMatch")
    body = await call.json()
    wanted = [
        {"partNumber": n, "etag": call.hub.parts[oid, n][1]} for n in range(1, parts + 1) if (oid, n) in call.hub.parts
    ]
    if len(wanted) != parts or body.get("parts") != wanted or body.get("oid") != oid:
        raise Refusal(400, "InvalidPart")
    whole = call.hub.blobs.scratch()
    with whole.open("wb") as stream:
        for number in range(1, parts + 1):
            piece, _ = call.hub.parts.pop((oid, number))
            stream.write(piece.read_bytes())
            piece.unlink()
    if not call.hub.blobs.adopt(whole, oid):
        raise Refusal(400, "sha256 of the assembled parts differs")
    return Answer({})


@route("POST", GIT + r"/info/lfs/objects/verify")
async def verify(call: Call) -> Answer:
    repo = call.repo()
    body = await call.json()
    path = call.hub.blobs.path(body["oid"])
    if not path.exists() or path.stat().st_size != body["size"]:
        raise Refusal(404, "Object does not exist or has another size")
    repo.large.add(body["oid"])
    return Answer({})


# --- commits ------------------------------------------------------------------------------------------


@route("POST", REPO + r"/commit/" + REV)
async def commit(call: Call) -> Answer:
    create_pr = call.flag("create_pr")
    repo, ref = may_commit(call, call["rev"], create_pr=create_pr)
    wait = call.hub.commit_window.take() if call.hub.commit_window else None
    if wait is not None:
        raise Refusal(
            429,
            f"You have exceeded the rate limit for repository commits ({call.hub.commit_window.quota} per hour). You can retry this action in {wait} seconds.",
            headers={"Retry-After": str(wait)},
        )
    header, operations = _parsed(lines(await call.request.read()))
    head = repo.refs[ref]
    parent = header.get("parentCommit")
    if parent and parent != head:
        raise Refusal(412, STALE)
    files = dict(repo.commits[head].files)
    for operation in operations:
        _apply(call, repo, files, operation)
    summary, description = header.get("summary") or "", header.get("description") or ""
    if not summary:
        raise Refusal(400, "A commit needs a summary")
    answer: dict[str, Any] = {}
    if create_pr:
        pull = call.hub.open_discussion(repo, summary, description, call.author, base=ref)
        call.hub.move_ref(repo, pull.ref, head)
        pull.base_commit, ref, head = head, pull.ref, repo.refs[pull.ref]
        prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
        answer["pullRequestUrl"] = f"{call.base}/{prefix}{repo.id}/discussions/{pull.num}"
    made = call.hub.store.advance(repo, ref, files, summary, description, call.author)
    _note_commit(call, repo, ref, made.id, summary)
    call.hub.ref_moved(repo, ref, head, made.id)
    prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
    url = f"{call.base}/{prefix}{repo.id}/commit/{made.id}"
    return Answer({"success": True, "commitUrl": url, "commitOid": made.id, "hookOutput": "", **answer})


def _note_commit(call: Call, repo: Repo, ref: str, sha: str, subject: str) -> None:
    if ref.startswith("refs/pr/"):
        pull: Discussion = repo.discussions[int(ref.rsplit("/", 1)[1])]
        call.hub.add_event(pull, "commit", call.author, {"subject": subject, "oid": sha})


def _parsed(found: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    if not found or found[0].get("key") != "header":
        raise Refusal(400, "The first line must have the key `header`")
    if len(found) == 1:
        raise Refusal(400, EMPTY)
    return found[0]["value"], found[1:]


def _apply(call: Call, repo: Repo, files: dict[str, Entry], operation: dict[str, Any]) -> None:
    key, value = operation.get("key"), operation["value"]
    path = checked_path(value["path"].rstrip("/"))
    if key in ("deletedFile", "deletedFolder"):
        remove(files, path, folder=key == "deletedFolder")
    elif key == "file":
        files[path] = _small(call, repo, files, path, value)
    elif key == "lfsFile":
        files[path] = _large(call, repo, value)
    else:
        raise Refusal(400, f"Unknown key {key}")
    if key in ("file", "lfsFile"):
        _check_tree(files, path)


def _small(call: Call, repo: Repo, files: dict[str, Entry], path: str, value: dict[str, Any]) -> Entry:
    if value.get("encoding") != "base64":
        raise Refusal(400, "encoding must be base64")
    try:
        content = base64.b64decode(value["content"], validate=True)
    except binascii.Error:
        raise Refusal(400, f"{path} is not base64") from None
    if content and call.hub.store.is_large(repo, files, path, len(content), content[:512]):
        raise Refusal(
            400, f"Your push was rejected because it contains binary or large files. Use LFS or Xet for: {path}"
        )
    if path == "README.md":
        errors, _ = cards.validate(content.decode("utf-8", "replace"), repo.kind)
        if errors:
            raise Refusal(400, "Your push was rejected: invalid metadata in README.md: " + "; ".join(errors))
    return call.hub.store.small(content)


def _large(call: Call, repo: Repo, value: dict[str, Any]) -> Entry:
    oid = value["oid"]
    if oid not in repo.large or not call.hub.blobs.path(oid).exists():
        raise Refusal(
            400,
            "Your push was rejected because an LFS pointer pointed to a file that does not exist. "
            f"Offending file: - {value['path']}",
        )
    size = call.hub.blobs.path(oid).stat().st_size
    if value.get("size", size) != size:
        raise Refusal(400, f"{value['path']} has {size} bytes, not {value['size']}")
    return call.hub.store.large(oid, size)


def _check_tree(files: dict[str, Entry], path: str) -> None:
    parts = path.split("/")
    for length in range(1, len(parts)):
        if "/".join(parts[:length]) in files:
            raise Refusal(422, f"{'/'.join(parts[:length])} is a file and cannot hold {path}")
