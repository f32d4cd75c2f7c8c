"""Orders from another process: what the test would call on `Hub`, over HTTP under /-/.

POST /-/fail    {"pattern": …, "status": 503, …}      GET /-/journal      POST /-/journal/clear
POST /-/user    {"name": …, "orgs": {…}, "scope": …}  GET /-/leaks
"""

from __future__ import annotations

from dataclasses import asdict

from tests.hub.app import Answer, Call, route


@route("POST", r"/-/fail")
async def fail(call: Call) -> Answer:
    body = await call.json()
    call.hub.fail(body.pop("pattern"), **body)
    return Answer({})


@route("POST", r"/-/heal")
async def heal(call: Call) -> Answer:
    call.hub.heal()
    return Answer({})


@route("POST", r"/-/user")
async def user(call: Call) -> Answer:
    return Answer({"token": call.hub.user(**await call.json())})


@route("GET", r"/-/journal")
async def journal(call: Call) -> Answer:
    return Answer([asdict(request) for request in call.hub.journal.requests])


@route("POST", r"/-/journal/clear")
async def clear(call: Call) -> Answer:
    call.hub.journal.clear()
    return Answer({})


@route("GET", r"/-/leaks")
async def leaks(call: Call) -> Answer:
    return Answer(call.hub.journal.leaks)


@route("GET", r"/-/healthz")
async def healthz(call: Call) -> Answer:
    return Answer({"endpoint": call.hub.endpoint, "storage": call.hub.storage})
