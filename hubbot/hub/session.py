"""Every request to the Hub, ours and the client's: a deadline, a bound on the answer, and the token for its own Hub alone.

Nobody promises that the other side is a Hub in good health: an answer may trickle, unpack to gigabytes, or send us
on to another host, or round in a ring of pages.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import httpcore2
import httpx2
from huggingface_hub import constants
from huggingface_hub.utils._http import default_client_factory, set_client_factory

from hubbot.errors import HubFailed

__all__ = ["LARGEST_ANSWER", "belongs_to", "bounded", "is_hub", "seconds_for", "within"]

LARGEST_ANSWER = 64 * 2**20  # bytes of one answer, unpacked
MOST_REQUESTS = 2_000  # of one call: its pages and its attempts
MOST_BYTES = 512 * 2**20  # of all answers to one call
ANSWER_SECONDS = 600.0  # for one request; longer where it carries much
SLOWEST = 100_000  # bytes a second that an upload is given time for

_hubs: set[str] = set()  # origins of the Hubs that were asked
_homes: dict[str, set[str]] = {}  # token -> origins that it may be sent to


def seconds_for(size: int) -> float:
    """The time that a transfer of so many bytes is given."""
    return ANSWER_SECONDS + size / SLOWEST


@dataclass(slots=True)
class _Call:
    """What one call may still take."""

    until: float  # monotonic
    requests: int = 0
    bytes: int = 0
    pages: set[str] = field(default_factory=set)  # that were read


_call: ContextVar[_Call | None] = ContextVar("call", default=None)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Whatever is asked inside ends within that time, in a bounded number of requests and bytes. An outer limit holds on."""
    outer, until = _call.get(), time.monotonic() + seconds
    before = _call.set(_Call(until=min(until, outer.until) if outer else until))
    try:
        yield
    finally:
        _call.reset(before)


def belongs_to(token: str | None, endpoint: str) -> None:
    """From now on the token may be sent to that Hub."""
    origin = _origin(httpx2.URL(endpoint))
    _hubs.add(origin)
    if token:
        _homes.setdefault(token, set()).add(origin)


def is_hub(url: httpx2.URL) -> bool:
    """Whether an address is a Hub's own, not its storage's or anybody else's."""
    return _origin(url) in _hubs


def bounded(answer: httpx2.Response, most: int | None = None) -> httpx2.Response:
    """The answer with its body read and unpacked. Raises HubFailed for one above `most` bytes, without reading on."""
    most = most or LARGEST_ANSWER
    body = bytearray()
    call = _call.get()
    for piece in answer.iter_bytes(65_536):
        body += piece
        if call:
            call.bytes += len(piece)
        if len(body) > most or (call and call.bytes > MOST_BYTES):
            msg = f"The Hub's answer at {answer.url.path[:200]} has more than {most:,} bytes, which is no honest one. Look at that repo."
            raise HubFailed(msg)
    plain = [
        (name, value)
        for name, value in answer.headers.multi_items()
        if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")  # the body is unpacked
    ]
    return httpx2.Response(
        answer.status_code, headers=plain, content=bytes(body), request=answer.request, history=answer.history
    )


class _Session(httpx2.Client):
    """The client's session, kept short."""

    def send(
        self, request: httpx2.Request, *, stream: bool = False, follow_redirects: Any = None, **options: Any
    ) -> httpx2.Response:
        size = int(request.headers.get("content-length") or 0)
        follow = follow_redirects if isinstance(follow_redirects, bool) else self.follow_redirects
        with within(seconds_for(size)) if _call.get() is None else _as_it_is():
            answer = self._followed(request, follow=follow, **options)
            if stream:
                return answer
            try:
                whole = bounded(answer)
            finally:
                answer.close()
            _count_page(whole)
            return whole

    def _followed(self, request: httpx2.Request, *, follow: bool, **options: Any) -> httpx2.Response:
        """The answer at the end of the redirects, whose own bodies nobody reads."""
        history: list[httpx2.Response] = []
        while True:
            _count(request)
            _keep_token_home(request)
            answer = super().send(request, stream=True, follow_redirects=False, **options)
            answer.history = list(history)
            if not (follow and answer.has_redirect_location):
                return answer
            answer.close()
            history.append(answer)
            if answer.next_request is None or len(history) > self.max_redirects:
                raise httpx2.TooManyRedirects("The redirects have no end.", request=request)
            request = answer.next_request


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def _count(request: httpx2.Request) -> None:
    if call := _call.get():
        call.requests += 1
        if call.requests > MOST_REQUESTS:
            msg = f"The Hub goes on for ever about {request.url.path[:200]}: {MOST_REQUESTS:,} requests did not end it. Look at that repo."
            raise HubFailed(msg)


def _count_page(answer: httpx2.Response) -> None:
    """Raises HubFailed where the next page is one that was read."""
    call, following = _call.get(), answer.links.get("next", {}).get("url")
    if call is None or not answer.is_success or following is None:
        return
    call.pages.add(str(answer.request.url))
    if str(answer.request.url.join(following)) in call.pages:
        msg = f"The Hub's pages at {answer.request.url.path[:200]} go round in a ring. Run it again later."
        raise HubFailed(msg)


def _keep_token_home(request: httpx2.Request) -> None:
    """A token that another host is to get is taken out: the Hub or a proxy names addresses, as of pages and uploads."""
    given = request.headers.get("authorization", "")
    homes = _homes.get(given.removeprefix("Bearer "), {_origin(httpx2.URL(constants.ENDPOINT))})
    if given and _origin(request.url) not in homes:
        del request.headers["authorization"]


def _origin(url: httpx2.URL) -> str:
    port = url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
    return f"{url.scheme}://{url.host}:{port}"


class _Stream(httpcore2.NetworkStream):
    """A connection whose waits end with the call, however often a byte still comes."""

    def __init__(self, inner: httpcore2.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> _Stream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _left(timeout, httpcore2.ConnectTimeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore2.NetworkBackend):
    def __init__(self, inner: httpcore2.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        left = _left(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._inner.connect_tcp(host, port, left, local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


def _left(timeout: float | None, late: type[Exception]) -> float | None:
    """The time that a wait may take: its own, or what is left of the call."""
    call = _call.get()
    if call is None:
        return timeout
    left = call.until - time.monotonic()
    if left <= 0:
        raise late("the call took too long")
    return left if timeout is None else min(timeout, left)


def _session() -> httpx2.Client:
    """The client's own, which by itself would wait for ever for an answer, and read all of it."""
    client = _Session(
        event_hooks=default_client_factory().event_hooks,
        follow_redirects=True,
        timeout=httpx2.Timeout(120.0, connect=15.0, read=300.0),  # seconds; storage joins large uploads in minutes
    )
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx2.HTTPTransport):
            pool: Any = transport._pool
            pool._network_backend = _Backend(pool._network_backend)
    return client


set_client_factory(_session)
