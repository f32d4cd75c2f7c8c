"""Webhooks: registration and payloads; and the jobs that may be started."""

from __future__ import annotations

from typing import Any

from tests.hub.app import Answer, Call, route
from tests.hub.refusal import Refusal
from tests.hub.store import MAIN, Discussion, Repo

HOOKS = r"/api/settings/webhooks"


def public(hook: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in hook.items() if key != "owner"}


def owned(call: Call) -> dict[str, Any]:
    token = call.hub.rights.need_user(call.token)
    hook = call.hub.webhooks.get(call["hook"])
    if hook is None or hook["owner"] != token.user.name:
        raise Refusal(404, "Webhook not found")
    return hook


@route("GET", HOOKS)
async def listed(call: Call) -> Answer:
    user = call.hub.rights.need_user(call.token).user.name
    return Answer([public(hook) for hook in call.hub.webhooks.values() if hook["owner"] == user])


@route("POST", HOOKS)
async def create(call: Call) -> Answer:
    token = call.hub.rights.need_user(call.token)
    if token.role == "read":
        raise Refusal(403, "This token may not manage webhooks")
    body = await call.json()
    if not body.get("watched") or not (body.get("url") or body.get("jobSourceId")):
        raise Refusal(400, '"watched" and "url" are required')
    call.hub.serial += 1
    hook = {"id": f"hook{call.hub.serial}", "disabled": False, "domains": ["repo"], **body, "owner": token.user.name}
    call.hub.webhooks[hook["id"]] = hook
    return Answer({"webhook": public(hook)})


@route("GET", HOOKS + r"/(?P<hook>[^/]+)")
async def one(call: Call) -> Answer:
    return Answer({"webhook": public(owned(call))})


@route("POST", HOOKS + r"/(?P<hook>[^/]+)")
async def update(call: Call) -> Answer:
    hook = owned(call)
    hook.update({key: value for key, value in (await call.json()).items() if value is not None})
    return Answer({"webhook": public(hook)})


@route("DELETE", HOOKS + r"/(?P<hook>[^/]+)")
async def delete(call: Call) -> Answer:
    del call.hub.webhooks[owned(call)["id"]]
    return Answer({})


@route("POST", HOOKS + r"/(?P<hook>[^/]+)/(?P<verb>enable|disable)")
async def switch(call: Call) -> Answer:
    hook = owned(call)
    hook["disabled"] = call["verb"] == "disable"
    return Answer({"webhook": public(hook)})


def watches(hook: dict[str, Any], repo: Repo, scope: str) -> bool:
    if hook["disabled"] or scope.split(".")[0] not in hook["domains"]:
        return False
    for watched in hook["watched"]:
        if watched["type"] in ("user", "org") and watched["name"] == repo.namespace:
            return True
        if watched["type"] == repo.kind and watched["name"] == repo.id:
            return True
    return False


def payload(
    endpoint: str,
    hook: dict[str, Any],
    repo: Repo,
    action: str,
    scope: str,
    refs: list[dict[str, Any]] | None,
    discussion: Discussion | None,
    comment: dict[str, Any] | None,
) -> dict[str, Any]:
    """Version 3 of the Hub's webhook payload."""
    prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
    web = f"{endpoint}/{prefix}{repo.id}"
    found: dict[str, Any] = {
        "event": {"action": action, "scope": scope},
        "repo": {
            "type": repo.kind,
            "name": repo.id,
            "id": f"id-{repo.id}",
            "private": repo.private,
            "url": {"web": web, "api": f"{endpoint}/api/{repo.kind}s/{repo.id}"},
            "owner": {"id": f"id-{repo.namespace}"},
            "headSha": repo.refs.get(MAIN),
            "tags": [],
        },
        "webhook": {"id": hook["id"], "version": 3},
    }
    if refs:
        found["updatedRefs"] = refs
    if discussion:
        found["discussion"] = {
            "id": f"discussion-{discussion.num}",
            "num": discussion.num,
            "title": discussion.title,
            "isPullRequest": discussion.is_pull_request,
            "status": discussion.status,
            "author": {"id": f"id-{discussion.author}"},
            "url": {"web": f"{web}/discussions/{discussion.num}", "api": f"{endpoint}/api/{repo.kind}s/{repo.id}"},
        }
        if discussion.is_pull_request:
            found["discussion"]["changes"] = {"base": discussion.base}
    if comment:
        found["comment"] = {
            "id": comment["id"],
            "author": {"id": f"id-{comment['author']['name']}"},
            "hidden": comment["data"]["hidden"],
            "content": comment["data"]["latest"]["raw"],
            "url": {"web": web},
        }
    return found


# --- jobs ---------------------------------------------------------------------------------------------


@route("POST", r"/api/(?P<what>jobs|scheduled-jobs)/(?P<namespace>[^/]+)")
async def start_job(call: Call) -> Answer:
    if not call.hub.rights.may_write(call.token, call["namespace"]):
        raise Refusal(403, "You may not start jobs here")
    body = await call.json()
    call.hub.serial += 1
    owner = {"id": f"id-{call['namespace']}", "name": call["namespace"], "type": "user"}
    job: dict[str, Any] = {"id": f"job{call.hub.serial}", "createdAt": call.hub.store.clock.now(), "owner": owner}
    if call["what"] == "jobs":
        job |= {**body, "status": {"stage": "RUNNING", "message": None}, "secrets": sorted(body.get("secrets") or {})}
    else:
        job |= {**body, "suspend": False, "concurrency": False, "status": {}}
    call.hub.jobs[job["id"]] = {**job, "sent": body, "what": call["what"]}
    return Answer(job)


@route("GET", r"/api/(?P<what>jobs|scheduled-jobs)/(?P<namespace>[^/]+)")
async def list_jobs(call: Call) -> Answer:
    found = [
        {key: value for key, value in job.items() if key not in ("sent", "what")}
        for job in call.hub.jobs.values()
        if job["what"] == call["what"] and job["owner"]["name"] == call["namespace"]
    ]
    return Answer(found)
