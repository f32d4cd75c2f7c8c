"""Reading the Hub: answers that are no honest ones are refused in a sentence, within bounds, without a secret in it."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from hubbot.errors import HubFailed
from hubbot.hub.client import Hub as Seen
from hubbot.hub.failures import translate_hub_error
from hubbot.hub.read import reader as reading
from hubbot.hub.read.reader import Reader
from hubbot.hub.retry import Retry
from hubbot.log.redact import redact
from tests.hub import Hub

SIGNED = "https://bucket.s3.example.org/repos/ab?X-Amz-Signature=5ecret5ecret&X-Amz-Expires=3600"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    answer: Callable[[BaseHTTPRequestHandler], None]


class _Answers(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.answer(self)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[Callable[[Callable[[BaseHTTPRequestHandler], None]], Reader]]:
    """A reader of a server that answers everything in one way."""
    server = _Server(("127.0.0.1", 0), _Answers)
    Thread(target=server.serve_forever, daemon=True).start()

    def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Reader:
        server.answer = answer
        endpoint = f"http://127.0.0.1:{server.server_port}"
        return Reader(Seen(endpoint=endpoint, retry=Retry(sleep=lambda _: None)))

    yield answering
    server.shutdown()
    server.server_close()


def send(body: bytes, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        send(b"no gzip at all", Content_Encoding="gzip"),
        send(b"", 302, Location="/api/models"),
        send(b"", 302, Location="http://[broken"),
        send(b"<html>"),
        send(b"[" * 100_000),
        send(b"\xff\xfe"),
    ],
    ids=["spoilt-encoding", "redirects-without-end", "spoilt-address", "no-json", "nested", "no-text"],
)
def test_an_answer_of_no_use_is_an_error_of_the_hub(answering, answer):
    with pytest.raises(HubFailed):
        answering(answer).get("/api/models")


def test_an_answer_without_end_is_not_read_to_its_end(answering, monkeypatch):
    monkeypatch.setattr(reading, "LARGEST_ANSWER", 100_000)
    sent = []

    def flood(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        sent.extend(request.wfile.write(b" " * 65_536) for _ in range(2_000))

    with pytest.raises(HubFailed, match="more than"):
        answering(flood).file("maker/one", "main", "hubbot.json", most=100_000)
    assert sum(sent) < 100 * 2**20


def test_a_small_answer_that_unpacks_to_a_large_one_is_refused(answering):
    with pytest.raises(HubFailed, match="more than"):
        answering(send(gzip.compress(bytes(10**7)), Content_Encoding="gzip")).file("maker/one", "main", "x", most=10**6)


def test_a_packed_answer_is_read(answering):
    packed = send(gzip.compress(b'{"name": "x"}'), Content_Encoding="gzip", ETag="abc")
    page = answering(packed).get("/api/whoami-v2")
    assert (page.body, page.etag) == ({"name": "x"}, "abc")


def test_a_slow_answer_is_waited_for(hub: Hub):
    hub.model("maker/one")
    hub.fail("GET /api/models/maker/one", slow=1.0)
    assert Reader(hub.seen()).get("/api/models/maker/one").body["id"] == "maker/one"


@pytest.mark.parametrize("quote", ["{}", "for url: '{}'", '"{}"', "<{}>", "({})", "url='{}'\nFor more information"])
def test_a_signed_address_is_shown_without_its_signature(quote):
    text = quote.format(SIGNED)
    for shown in (redact(text), str(translate_hub_error(RuntimeError(text), "maker/one", Seen()))):
        assert "5ecret" not in shown
        assert "https://bucket.s3.example.org/repos/ab?" in shown
