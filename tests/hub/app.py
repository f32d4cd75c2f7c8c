"""From a request to an answer: routes, tokens, faults, the journal."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from aiohttp import web

from tests.hub.faults import Fault, Request
from tests.hub.refusal import Refusal
from tests.hub.rights import Token
from tests.hub.store import Repo

if TYPE_CHECKING:
    from tests.hub.server import Hub

PIECE = 64 * 1024


@dataclass(slots=True)
class Answer:
    """What a handler wants to be sent: a value as JSON, bytes, or a stretch of a file."""

    value: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    file: Path | None = None
    start: int = 0
    size: int = 0  # of the stretch

    def body(self) -> tuple[bytes, str]:
        if self.content is not None:
            return self.content, "text/plain; charset=utf-8"
        return json.dumps(self.value, default=str).encode(), "application/json; charset=utf-8"


@dataclass(slots=True)
class Call:
    """One request, with who asks."""

    hub: Hub
    request: web.Request
    match: dict[str, str]
    query: list[tuple[str, str]]
    token: Token | None
    fault: Fault | None

    def __getitem__(self, name: str) -> str:
        return unquote(self.match[name])

    def arg(self, name: str, default: str | None = None) -> str | None:
        return next((value for key, value in self.query if key == name), default)

    def args(self, name: str) -> list[str]:
        return [value for key, value in self.query if key == name]

    def flag(self, name: str) -> bool:
        return (self.arg(name) or "").lower() in ("1", "true")

    async def json(self) -> Any:
        try:
            return json.loads(await self.request.read() or b"{}")
        except ValueError:
            raise Refusal(400, "Invalid JSON body") from None

    @property
    def kind(self) -> str:
        """model, dataset or space, from `models`, `datasets`, `spaces` or nothing."""
        return (self.match.get("kinds") or "models").strip("/").removesuffix("s")

    @property
    def base(self) -> str:
        return f"http://{self.request.host}"

    @property
    def author(self) -> str:
        return self.token.user.name if self.token else "anonymous"

    def repo(self) -> Repo:
        """The repo of the path, if the asker may see it."""
        return self.hub.rights.need_read(self.token, self.hub.find(self.kind, self["repo"]))

    def writable(self, *, hint: str = "") -> Repo:
        repo = self.repo()
        self.hub.rights.need_write(self.token, repo, hint=hint)
        return repo


Handler = Callable[[Call], Awaitable[Answer]]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []
REPO = r"/api/(?P<kinds>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
REV = r"(?P<rev>[^/]+)"


def route(method: str, pattern: str) -> Callable[[Handler], Handler]:
    """Register a handler for a method and a pattern of the whole raw path."""

    def register(handler: Handler) -> Handler:
        ROUTES.append((method, re.compile(pattern), handler))
        return handler

    return register


class Cut(Exception):
    """The connection is to be broken now."""


class App:
    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        line = f"{request.method} {request.raw_path}"
        control = request.path.startswith("/-/")
        fault = None if control else next((f for f in self.hub.faults if f.strikes(line)), None)
        status: int | None = None
        token: Token | None = None
        try:
            await self._before(request, fault)
            token = None if control else self.hub.rights.token_of(request.headers.get("Authorization"))
            answer = await self._answer(request, token, fault)
            if fault:
                answer.headers |= fault.headers
                if fault.instead is not None:
                    answer.content, answer.file = fault.instead, None
            status = answer.status
            if fault and fault.cut == "answer":
                self._log(request, token, None, fault)
                return _broken(request)
        except Refusal as refusal:
            answer = self._refused(refusal)
            if fault and fault.instead is not None:
                answer.content = fault.instead
            status = answer.status
        except (Cut, ConnectionResetError):
            self._log(request, token, None, fault)
            return _broken(request)
        except asyncio.CancelledError:
            self._log(request, token, None, fault)
            raise
        self._headers(request, answer)
        if not control:
            self._log(request, token, status, fault)
        try:
            return await send(request, answer, fault)
        except (Cut, ConnectionResetError):
            return _broken(request)

    async def _before(self, request: web.Request, fault: Fault | None) -> None:
        if fault is None:
            return
        if fault.do:
            await asyncio.get_running_loop().run_in_executor(None, fault.do)
        if fault.slow:
            await asyncio.sleep(fault.slow)
        if fault.cut == "before":
            raise Cut
        if fault.status:
            await _drain(request)
            headers = {}
            if fault.retry_after is not None:
                headers["Retry-After"] = str(fault.retry_after)
            if fault.ratelimit is not None:
                headers["RateLimit"] = f'"api";r=0;t={fault.ratelimit}'
            raise Refusal(fault.status, f"Injected fault {fault.status}", headers=headers | fault.headers)
        if fault.cut == "upload":
            await _drain(request, fault.after)
            raise Cut

    async def _answer(self, request: web.Request, token: Token | None, fault: Fault | None) -> Answer:
        path, _, query = request.raw_path.partition("?")
        method = "GET" if request.method == "HEAD" else request.method
        for wanted, pattern, handler in ROUTES:
            if wanted == method and (match := pattern.fullmatch(path)):
                self._limit(path)
                pairs = parse_qsl(query, keep_blank_values=True)
                call = Call(self.hub, request, match.groupdict(), pairs, token, fault)
                return await handler(call)
        raise Refusal(404, "Sorry, we can't find the page you are looking for.")

    def _limit(self, path: str) -> None:
        window = self.hub.api_window
        if not path.startswith("/api/") or window is None:
            return
        wait = window.take()
        if wait is not None:
            headers = {"RateLimit": f'"api";r=0;t={wait}', "Retry-After": str(wait)}
            raise Refusal(429, "You have exceeded the rate limit.", headers=headers)

    def _refused(self, refusal: Refusal) -> Answer:
        headers = {"X-Error-Message": _one_line(refusal.message), **refusal.headers}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        return Answer({"error": refusal.message, **refusal.body}, refusal.status, headers)

    def _headers(self, request: web.Request, answer: Answer) -> None:
        asked = request.headers.get("X-Amzn-Trace-Id")
        if asked:
            answer.headers.setdefault("X-Request-Id", asked)
        window = self.hub.api_window
        if request.path.startswith("/api/") and window is not None:
            answer.headers.setdefault("RateLimit", f'"api";r={window.left};t={round(window.seconds)}')
            answer.headers["RateLimit-Policy"] = f'"fixed window";"api";q={window.quota};w={round(window.seconds)}'
        for topic, message in self.hub.warnings.items():
            answer.headers["X-HF-Warning"] = f"{topic}; {message}"

    def _log(self, request: web.Request, token: Token | None, status: int | None, fault: Fault | None) -> None:
        journal = self.hub.journal
        entry = Request(
            number=len(journal.requests),
            time=time.monotonic(),
            method=request.method,
            path=request.raw_path,
            user=token.user.name if token else None,
            storage=request.path.startswith("/storage/"),
            with_token="Authorization" in request.headers,
            range=request.headers.get("Range"),
            status=status,
            fault=fault is not None,
        )
        journal.requests.append(entry)


async def send(request: web.Request, answer: Answer, fault: Fault | None) -> web.StreamResponse:
    """Write the answer, spoiled as the fault says."""
    if answer.file is None:
        content, kind = answer.body()
        if request.method in ("GET", "HEAD") and answer.status == 200 and "ETag" not in answer.headers:
            etag = f'W/"{hashlib.sha1(content).hexdigest()}"'
            answer.headers["ETag"] = etag
            if request.headers.get("If-None-Match") == etag:
                return web.Response(status=304, headers=answer.headers)
        answer.headers.setdefault("Content-Type", kind)
        size = len(content)
    else:
        content, size = b"", answer.size
        answer.headers.setdefault("Content-Type", "application/octet-stream")
    if fault and fault.truncate:
        size = max(0, size - fault.truncate)
    answer.headers["Content-Length"] = str(size)
    if fault and (fault.trickle or fault.endless):
        return await _without_end(request, answer, content, fault)
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    await response.prepare(request)
    if request.method != "HEAD":
        await _write(request, response, answer, content, size, fault)
    await response.write_eof()
    return response


async def _without_end(request: web.Request, answer: Answer, content: bytes, fault: Fault) -> web.StreamResponse:
    """A body that comes byte by byte, or never stops coming."""
    del answer.headers["Content-Length"]
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.enable_chunked_encoding()
    await response.prepare(request)
    while True:
        for start in range(0, len(content), 1 if fault.trickle else PIECE):
            await response.write(content[start : start + (1 if fault.trickle else PIECE)])
            await asyncio.sleep(fault.trickle)
        if not fault.endless:
            break
    await response.write_eof()
    return response


async def _write(
    request: web.Request, response: web.StreamResponse, answer: Answer, content: bytes, size: int, fault: Fault | None
) -> None:
    stream = answer.file.open("rb") if answer.file else None
    try:
        if stream:
            stream.seek(answer.start)
        sent = 0
        while sent < size:
            piece = min(PIECE, size - sent)
            if fault and fault.cut == "download":
                piece = min(piece, fault.after - sent)
                if piece <= 0:
                    # what was written reaches the client before the reset would throw it away
                    await asyncio.sleep(0.05)
                    raise Cut
            block = stream.read(piece) if stream else content[sent : sent + piece]
            if fault:
                block = fault.spoil(block, sent, size)
                if fault.drip:
                    await asyncio.sleep(fault.drip)
            await response.write(block)
            sent += len(block)
    finally:
        if stream:
            stream.close()


async def _drain(request: web.Request, limit: int | None = None) -> None:
    """Take in the request's body, or the first `limit` bytes of it."""
    taken = 0
    async for piece in request.content.iter_chunked(PIECE):
        taken += len(piece)
        if limit is not None and taken >= limit:
            return


def _broken(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


def _one_line(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1").replace("\r", " ").replace("\n", " ")[:2000]


def lines(content: bytes) -> list[dict[str, Any]]:
    """A body of JSON lines."""
    try:
        return [json.loads(line) for line in content.splitlines() if line.strip()]
    except ValueError:
        raise Refusal(400, "Invalid JSON lines") from None


def page(call: Call, items: list[Any], limit: int) -> Answer:
    """One page of a list; the rest hangs on a Link header."""
    start = int(call.arg("cursor") or 0)
    headers = {}
    if start + limit < len(items):
        path, _, query = call.request.raw_path.partition("?")
        kept = "&".join(part for part in query.split("&") if part and not part.startswith("cursor="))
        url = f"{call.base}{path}?{kept}{'&' if kept else ''}cursor={start + limit}"
        headers["Link"] = f'<{url}>; rel="next"'
    return Answer(items[start : start + limit], headers=headers)
