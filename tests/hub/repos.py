"""Repositories: whoami, create, settings, branches, tags, history."""

from __future__ import annotations

from typing import Any

from tests.hub.app import REPO, REV, Answer, Call, page, route
from tests.hub.refusal import Refusal, no_repo, no_revision
from tests.hub.store import MAIN, Repo


@route("GET", r"/api/whoami-v2")
async def whoami(call: Call) -> Answer:
    return Answer(call.hub.rights.whoami(call.hub.rights.need_user(call.token)))


@route("GET", r"/api/agent-harnesses")
async def harnesses(call: Call) -> Answer:
    raise Refusal(404, "Not found")


def url_of(call: Call, repo: Repo) -> str:
    prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
    return f"{call.base}/{prefix}{repo.id}"


@route("POST", r"/api/repos/create")
async def create(call: Call) -> Answer:
    body = await call.json()
    token = call.hub.rights.need_user(call.token)
    kind = body.get("type") or "model"
    namespace = body.get("organization") or token.user.name
    if not call.hub.rights.may_write(token, namespace):
        raise Refusal(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
    repo_id = f"{namespace}/{body['name']}"
    repo = call.hub.find(kind, repo_id)
    if repo is not None:
        raise Refusal(409, f"You already created this {kind} repo: {repo_id}", url=url_of(call, repo))
    private = body.get("visibility") == "private" or body.get("private") is True
    repo = call.hub.store.create(kind, repo_id, private=private, author=token.user.name)
    call.hub.announce(repo, "create", "repo")
    return Answer({"url": url_of(call, repo), "name": repo_id, "id": repo_id})


def _named(call: Call, body: dict[str, Any]) -> Repo:
    token = call.hub.rights.need_user(call.token)
    namespace = body.get("organization") or token.user.name
    repo = call.hub.find(body.get("type") or "model", f"{namespace}/{body['name']}")
    repo = call.hub.rights.need_read(token, repo)
    call.hub.rights.need_write(token, repo)
    return repo


@route("DELETE", r"/api/repos/delete")
async def delete(call: Call) -> Answer:
    repo = _named(call, await call.json())
    call.hub.delete_repo(repo.id, repo.kind)
    return Answer({})


@route("POST", r"/api/repos/move")
async def move(call: Call) -> Answer:
    body = await call.json()
    kind = body.get("type") or "model"
    repo = call.hub.rights.need_read(call.token, call.hub.find(kind, body["fromRepo"]))
    call.hub.rights.need_write(call.token, repo)
    if call.hub.find(kind, body["toRepo"]):
        raise Refusal(409, f"A {kind} repository called {body['toRepo']} already exists")
    call.hub.store.rename(repo, body["toRepo"])
    return Answer({})


@route("PUT", REPO + r"/settings")
async def settings(call: Call) -> Answer:
    repo = call.writable()
    body = await call.json()
    if "gated" in body:
        repo.gated = body["gated"]
    if "visibility" in body or "private" in body:
        repo.private = body.get("visibility") == "private" or body.get("private") is True
    repo.derived.clear()
    call.hub.announce(repo, "update", "repo.config")
    return Answer({"private": repo.private, "gated": repo.gated})


@route("POST", REPO + r"/branch/(?P<branch>[^/]+)")
async def create_branch(call: Call) -> Answer:
    repo = call.writable()
    ref = f"refs/heads/{call['branch']}"
    if ref in repo.refs:
        raise Refusal(409, f"Reference {ref} already exists")
    start = repo.resolve((await call.json()).get("startingPoint") or "main")
    call.hub.move_ref(repo, ref, start)
    return Answer({})


@route("DELETE", REPO + r"/branch/(?P<branch>[^/]+)")
async def delete_branch(call: Call) -> Answer:
    repo = call.writable()
    ref = f"refs/heads/{call['branch']}"
    if ref == MAIN:
        raise Refusal(403, f"Cannot delete {ref}")
    if ref not in repo.refs:
        raise no_revision(call["branch"])
    call.hub.move_ref(repo, ref, None)
    return Answer({})


@route("POST", REPO + r"/tag/" + REV)
async def create_tag(call: Call) -> Answer:
    repo = call.writable()
    body = await call.json()
    ref = f"refs/tags/{body['tag']}"
    if ref in repo.refs:
        raise Refusal(409, f"Reference {ref} already exists")
    call.hub.move_ref(repo, ref, repo.resolve(call["rev"]))
    return Answer({})


@route("DELETE", REPO + r"/tag/" + REV)
async def delete_tag(call: Call) -> Answer:
    repo = call.writable()
    ref = f"refs/tags/{call['rev']}"
    if ref not in repo.refs:
        raise no_revision(call["rev"])
    call.hub.move_ref(repo, ref, None)
    return Answer({})


@route("GET", REPO + r"/refs")
async def refs(call: Call) -> Answer:
    repo = call.repo()

    def listed(prefix: str, name: str | None = None) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(name or prefix), "ref": ref, "targetCommit": sha}
            for ref, sha in repo.refs.items()
            if ref.startswith(prefix)
        ]

    found = {"branches": listed("refs/heads/"), "tags": listed("refs/tags/"), "converts": listed("refs/convert/")}
    if call.flag("include_prs"):
        found["pullRequests"] = listed("refs/pr/")
    return Answer(found)


@route("GET", REPO + r"/commits/" + REV)
async def commits(call: Call) -> Answer:
    repo = call.repo()
    found = [
        {"id": c.id, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
        for c in repo.history(repo.resolve(call["rev"]))
    ]
    return page(call, found, int(call.arg("limit") or 50))


@route("POST", REPO + r"/super-squash/" + REV)
async def super_squash(call: Call) -> Answer:
    repo = call.writable()
    ref = repo.branch_of(call["rev"])
    files = repo.commits[repo.refs[ref]].files
    message = (await call.json()).get("message") or "Super-squash"
    old = repo.refs.pop(ref)
    commit = call.hub.store.advance(repo, ref, files, message, "", call.author)
    call.hub.ref_moved(repo, ref, old, commit.id)
    return Answer({})


@route("POST", REPO + r"/duplicate")
async def duplicate(call: Call) -> Answer:
    source = call.repo()
    token = call.hub.rights.need_user(call.token)
    body = await call.json()
    repo_id = body["repository"]
    if not call.hub.rights.may_write(token, repo_id.split("/")[0]):
        raise Refusal(403, f"You don't have the rights to create {repo_id}")
    if call.hub.find(source.kind, repo_id):
        raise Refusal(409, f"You already created this {source.kind} repo: {repo_id}")
    repo = call.hub.store.create(source.kind, repo_id, private=body.get("visibility") == "private", author=call.author)
    repo.large |= source.large
    call.hub.store.advance(repo, MAIN, source.commit_at("main").files, f"Duplicate from {source.id}", "", call.author)
    return Answer({"url": url_of(call, repo)})


@route("GET", REPO + r"/auth-check(?P<write>/write)?")
async def auth_check(call: Call) -> Answer:
    repo = call.repo()
    if call.match.get("write"):
        call.hub.rights.need_write(call.token, repo)
    call.hub.rights.need_files(call.token, repo)
    return Answer({})


@route("GET", REPO + r"/user-access-request/(?P<status>pending|accepted|rejected)")
async def access_requests(call: Call) -> Answer:
    repo = call.writable()
    return Answer(
        [
            {
                "requestId": f"request-{name}",
                "status": status,
                "timestamp": repo.created,
                "user": {"user": name, "fullname": name.title(), "email": f"{name}@example.org"},
            }
            for name, status in repo.access.items()
            if status == call["status"]
        ]
    )


@route("POST", REPO + r"/user-access-request/(?P<verb>handle|grant)")
async def decide_access(call: Call) -> Answer:
    repo = call.writable()
    body = await call.json()
    user = body.get("user") or body["requestId"].removeprefix("request-")
    if user not in call.hub.rights.users:
        raise no_repo(anonymous=False)
    repo.access[user] = "accepted" if call["verb"] == "grant" else body["status"]
    return Answer({})
