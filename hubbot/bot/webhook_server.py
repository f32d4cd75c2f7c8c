"""`hubbot serve`: receives the Hub's webhooks and answers only once they are on disk."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hubbot import __version__
from hubbot.bot.deliver import Route, delivering
from hubbot.bot.ledger.events import QUEUE
from hubbot.bot.ledger.store import open_ledger
from hubbot.bot.metrics import exposition
from hubbot.bot.receiver import Receiver, receiving
from hubbot.bot.stop import on_signals
from hubbot.bot.webhook import BadDelivery, Delivery, events_of, knows_secret, read_delivery
from hubbot.errors import LedgerFailed
from hubbot.log import say
from hubbot.settings.watch import ServeSettings

_SUMMARY = "Takes the Hugging Face Hub's webhooks and queues what changed."
_ANSWERS = {
    202: "The events are on disk.",
    200: "Nothing in it makes a model new: another action, a pull request, no model.",
    401: "The secret is missing or wrong.",
    413: "The body is too large or too slow.",
    422: "No payload of the Hub.",
    503: "The state file cannot be written; send it again.",
}
HEAD_SECONDS = 10.0  # for the head of a request
CONNECTIONS = 100  # at once; the descriptors that a service usually has are 256 and more
BODY_SECONDS = 10.0  # a sender that takes longer is hung up on


def serve(state: Path, settings: ServeSettings, secret: str, *, route: Route | None) -> None:
    """Listen until SIGTERM or SIGINT; requests under way are answered first.

    route: where events are handed on to, None: they wait for `hubbot watch` on the same state file.
    """
    with ExitStack() as stack:
        receiver, receives = stack.enter_context(receiving(state, taker=route.taker if route else QUEUE))
        threads = [receives]
        if route is not None:
            threads.append(stack.enter_context(delivering(state, route)))
        app = make_app(receiver, threads, secret=secret, max_body=settings.max_body, state=state)
        config = uvicorn.Config(
            app,
            http=Patience,
            host=settings.host,
            port=settings.port,
            log_level="warning",
            access_log=False,  # a line for each delivery says nothing that /metrics does not
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(BODY_SECONDS),
        )
        socket = config.bind_socket()
        socket.listen(config.backlog)  # from here on senders wait instead of being turned away
        host, port = socket.getsockname()[:2]
        say(f"listening on http://{host}:{port}/webhook, state in {state}")
        with on_signals():  # uvicorn stops on them, then raises them again: that shall not end us half-way
            uvicorn.Server(config).run(sockets=[socket])


class Patience(HttpToolsProtocol):
    """A connection that has sent the whole head of a request in time, or is hung up on; and no more of them than fit.

    Without it, whoever opens connections and says half a line on each takes up every descriptor of the process.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        if len(self.connections) > CONNECTIONS:
            transport.close()
        else:
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._deadline is None and self._between_requests():
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._hang_up)

    def _hang_up(self) -> None:
        self._deadline = None
        if self._between_requests():
            self.transport.close()

    def _between_requests(self) -> bool:
        cycle: Any = self.cycle  # None until the first request, whatever its annotation says
        return cycle is None or bool(cycle.response_complete)


def make_app(
    receiver: Receiver, threads: Sequence[threading.Thread], *, secret: str, max_body: int, state: Path
) -> FastAPI:
    """The application. threads: without which it is not well; secret: what deliveries must know; max_body: bytes."""
    answers: Counter[str] = Counter()

    def answer(outcome: str, code: int, **content: object) -> Response:
        answers[outcome] += 1
        return JSONResponse(content, status_code=code, headers={"Retry-After": "30"} if code == 503 else None)

    async def webhook(request: Request) -> Response:
        if not knows_secret(request.headers.get("x-webhook-secret"), secret):
            return answer("unauthorized", 401, error="X-Webhook-Secret is missing or wrong")
        body = await read_body(request, max_body)
        if body is None:
            return answer("too_large", 413, error=f"more than {max_body} bytes, or too slow")
        try:
            found = events_of(read_delivery(body))
        except BadDelivery as error:
            return answer("malformed", 422, error=str(error))
        if not found:
            return answer("ignored", 200, accepted=0, repeated=0)
        try:
            fresh = await receiver.store(found)
        except LedgerFailed:
            return answer("failed", 503, error="the event could not be stored; send it again")
        return answer("accepted", 202, accepted=sum(fresh), repeated=len(fresh) - sum(fresh))

    app = FastAPI(title="hubbot", version=__version__, summary=_SUMMARY)
    # A plain route: FastAPI's reading of parameters would take longer than everything else together.
    app.add_route("/webhook", webhook, methods=["POST"])
    _describe_webhook(app)
    _watching_routes(app, receiver, threads, answers, state)
    return app


def _watching_routes(
    app: FastAPI, receiver: Receiver, threads: Sequence[threading.Thread], answers: Counter[str], state: Path
) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        """Whether deliveries can be stored and are handed on."""
        dead = next((f"the thread {thread.name} has ended" for thread in threads if not thread.is_alive()), None)
        problem = dead or (None if receiver.problem is None else "the state file")
        return JSONResponse({"ok": problem is None, "problem": problem}, status_code=503 if problem else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Counters for Prometheus."""
        with open_ledger(state, check=False) as ledger:
            text = exposition(ledger, answers, receiver.transactions)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _describe_webhook(app: FastAPI) -> None:
    """Put /webhook into the OpenAPI page, which leaves out plain routes."""
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generated()
        schema["paths"]["/webhook"] = {
            "post": {
                "summary": "Take a delivery of the Hub",
                "parameters": [
                    {"name": "X-Webhook-Secret", "in": "header", "required": True, "schema": {"type": "string"}}
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": Delivery.model_json_schema()}},
                },
                "responses": {str(code): {"description": text} for code, text in _ANSWERS.items()},
            }
        }
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


async def read_body(request: Request, most: int) -> bytes | None:
    """The body, or None where it is larger than `most` bytes or does not arrive in time."""
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > most:
        return None
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    return None
    except TimeoutError:
        return None
    return bytes(body)
