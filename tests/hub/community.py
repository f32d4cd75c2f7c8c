"""Discussions and pull requests."""

from __future__ import annotations

from typing import Any

from tests.hub.app import REPO, Answer, Call, route
from tests.hub.refusal import Refusal
from tests.hub.store import Discussion, Repo, changed, conflicting

PAGE = 10
ONE = REPO + r"/discussions/(?P<num>\d+)"


def summary(repo: Repo, item: Discussion) -> dict[str, Any]:
    return {
        "num": item.num,
        "title": item.title,
        "author": {"name": item.author, "type": "user"},
        "createdAt": item.created,
        "status": item.status,
        "repo": {"name": repo.id, "type": repo.kind},
        "isPullRequest": item.is_pull_request,
        "numComments": sum(event["type"] == "comment" for event in item.events),
    }


@route("GET", REPO + r"/discussions")
async def listed(call: Call) -> Answer:
    repo = call.repo()
    kind, status, author = call.arg("type"), call.arg("status"), call.arg("author")
    found = [
        item
        for item in reversed(repo.discussions.values())
        if (kind in (None, "all") or item.is_pull_request == (kind == "pull_request"))
        and (status in (None, "all") or (item.status in ("open", "draft")) == (status == "open"))
        and (author is None or item.author == author)
    ]
    start = int(call.arg("p") or 0) * PAGE
    shown = [summary(repo, item) for item in found[start : start + PAGE]]
    return Answer({"count": len(found), "start": start, "discussions": shown})


def one(call: Call) -> tuple[Repo, Discussion]:
    repo = call.repo()
    item = repo.discussions.get(int(call["num"]))
    if item is None:
        raise Refusal(404, "Discussion not found")
    return repo, item


@route("GET", ONE)
async def details(call: Call) -> Answer:
    repo, item = one(call)
    found = {**summary(repo, item), "events": item.events}
    if item.is_pull_request:
        base = repo.commits[item.base_commit].files
        theirs = repo.commits[repo.refs[item.ref]].files
        ours = repo.commits[repo.refs[item.base]].files if item.base in repo.refs else base
        found["changes"] = {"base": item.base, **({"mergeCommitId": item.merge_commit} if item.merge_commit else {})}
        found["filesWithConflicts"] = [] if item.status == "merged" else conflicting(base, ours, theirs)
        found["diff"] = "".join(f"diff --git a/{path} b/{path}\n" for path in changed(base, theirs))
    return Answer(found)


@route("GET", r"/api/organizations/(?P<org>[^/]+)/members")
async def members(call: Call) -> Answer:
    """Roles are shown to members alone."""
    org, rights = call["org"], call.hub.rights
    if org not in rights.orgs:
        raise Refusal(404, "Organization not found")
    inside = call.token is not None and org in call.token.user.orgs
    found = [
        {"user": user.name, "type": "user", **({"role": user.orgs[org]} if inside else {})}
        for user in rights.users.values()
        if org in user.orgs
    ]
    return Answer(found)


@route("POST", REPO + r"/discussions")
async def create(call: Call) -> Answer:
    repo = call.repo()
    token = call.hub.rights.need_discuss(call.token, repo)
    body = await call.json()
    if not body.get("title"):
        raise Refusal(400, '"title" is required')
    base = "refs/heads/main" if body.get("pullRequest") else None
    item = call.hub.open_discussion(repo, body["title"], body.get("description") or "", token.user.name, base=base)
    if base:
        item.status = "draft"
        item.base_commit = repo.refs[base]
        call.hub.move_ref(repo, item.ref, item.base_commit)
    return Answer({"num": item.num, "url": f"/{repo.id}/discussions/{item.num}", "pullRequest": base is not None})


def _mine(call: Call, repo: Repo, item: Discussion) -> None:
    token = call.hub.rights.need_discuss(call.token, repo)
    if token.user.name != item.author:
        call.hub.rights.need_write(call.token, repo)


@route("POST", ONE + r"/comment")
async def comment(call: Call) -> Answer:
    repo, item = one(call)
    call.hub.rights.need_discuss(call.token, repo)
    text = (await call.json()).get("comment")
    if not text:
        raise Refusal(400, '"comment" is required')
    event = call.hub.add_comment(item, call.author, text)
    call.hub.announce(repo, "create", "discussion.comment", discussion=item, comment=event)
    return Answer({"newMessage": event})


@route("POST", ONE + r"/comment/(?P<event>[^/]+)/(?P<verb>edit|hide)")
async def edit(call: Call) -> Answer:
    repo, item = one(call)
    event = next((e for e in item.events if e["id"] == call["event"] and e["type"] == "comment"), None)
    if event is None:
        raise Refusal(404, "Comment not found")
    if event["author"]["name"] != call.author:
        call.hub.rights.need_write(call.token, repo)
    if call["verb"] == "hide":
        event["data"]["hidden"] = True
    else:
        event["data"]["latest"] = {"raw": (await call.json())["content"]}
        event["data"]["edited"] = True
    return Answer({"updatedComment": event})


@route("POST", ONE + r"/title")
async def retitle(call: Call) -> Answer:
    repo, item = one(call)
    _mine(call, repo, item)
    title = (await call.json())["title"]
    event = call.hub.add_event(item, "title-change", call.author, {"from": item.title, "to": title})
    item.title = title
    return Answer({"newTitle": event})


@route("POST", ONE + r"/status")
async def restatus(call: Call) -> Answer:
    repo, item = one(call)
    _mine(call, repo, item)
    body = await call.json()
    if body.get("status") not in ("open", "closed"):
        raise Refusal(400, '"status" must be one of [open, closed]')
    if item.status == "merged":
        raise Refusal(400, "A merged pull request keeps its status")
    item.status = body["status"]
    if body.get("comment"):
        call.hub.add_comment(item, call.author, body["comment"])
    event = call.hub.add_event(item, "status-change", call.author, {"status": item.status})
    call.hub.announce(repo, "update", "discussion", discussion=item)
    return Answer({"newStatus": event})


@route("POST", ONE + r"/merge")
async def merge(call: Call) -> Answer:
    repo, item = one(call)
    call.hub.rights.need_write(call.token, repo)
    if not item.is_pull_request or item.status not in ("open", "draft"):
        raise Refusal(400, f"Discussion {item.num} cannot be merged: it is {item.status}")
    call.hub.merge(repo, item, call.author)
    return Answer({})
