"""A Hub that lies or is broken: every call ends, within bounds, in a sentence, and no token goes to another host."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Literal

import pytest

from hubbot.errors import HubbotError, HubFailed, SourceNotFound
from hubbot.hub import session
from hubbot.hub.client import Hub as Seen
from hubbot.hub.publish.current_release import read_current
from hubbot.hub.publish.publication import publish
from hubbot.hub.read.listing import author_query, candidates, collection, pages, read_contents, read_model
from hubbot.hub.read.reader import Reader
from hubbot.hub.read.source import fetch
from hubbot.hub.retry import Retry
from hubbot.hub.rights import token_rights
from tests.hub import Hub
from tests.hub.models import gguf_release, sharded

TREE = "GET /api/models/ada/tiny-GGUF/tree/"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str | None]]]:
    """Another host, which answers everything with an empty list, and the tokens that it was given."""
    given: list[str | None] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given.append(self.headers.get("Authorization"))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        do_POST = do_PUT = do_GET  # noqa: N815 -- the names are http.server's

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.3", 0), Answers)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.3:{server.server_port}", given
    server.shutdown()
    server.server_close()


def quick(hub: Hub, token: str | None = None, *, seconds: float = 2.0) -> Seen:
    return hub.seen(token, retry=Retry(attempts=2, seconds=seconds, sleep=lambda _: None))


# --- the token -------------------------------------------------------------------------------------------


def test_a_next_page_on_another_host_gets_no_token(hub: Hub, elsewhere):
    address, given = elsewhere
    hub.model("ada/m")
    hub.fail("GET /api/models/ada/m/commits/", headers={"Link": f'<{address}/more>; rel="next"'})
    api = hub.seen(hub.user("ada")).api
    list(api.list_repo_commits("ada/m"))
    assert given == [None]


def test_the_verify_address_of_an_upload_on_another_host_gets_no_token(hub: Hub, elsewhere, tmp_path: Path):
    address, given = elsewhere
    token = hub.user("ada")

    release = gguf_release(tmp_path, "Q8_0")
    [large] = [path for path in release.branches["main"].values() if path.suffix == ".gguf"]
    oid, size = hashlib.sha256(large.read_bytes()).hexdigest(), large.stat().st_size
    actions = {"upload": {"href": f"{address}/put"}, "verify": {"href": f"{address}/verify"}}
    body = {"transfer": "basic", "objects": [{"oid": oid, "size": size, "actions": actions}]}
    hub.fail("POST .*/info/lfs/objects/batch", times=None, instead=json.dumps(body).encode())
    with pytest.raises(HubbotError):
        publish(release, quick(hub, token), mode="main")
    assert token not in str(given)


def test_a_redirect_to_another_host_gets_no_token(hub: Hub, elsewhere):
    address, given = elsewhere
    hub.fail("GET /api/models/ada/m", status=307, headers={"Location": f"{address}/m"})
    Reader(quick(hub, "hf_secretsecret")).get("/api/models/ada/m")
    assert given == [None]


# --- no end ----------------------------------------------------------------------------------------------


def released(hub: Hub, tmp_path: Path) -> str:
    """A token of the account that has published a release."""
    token = hub.user("ada")
    publish(gguf_release(tmp_path / "old", "Q8_0"), hub.seen(token), mode="main")
    return token


@pytest.mark.parametrize("ring", [1, 2])
@pytest.mark.parametrize("what", ["tree", "commits"])
def test_pages_that_go_round_end_in_an_error(hub: Hub, tmp_path: Path, what: str, ring: int):
    token = released(hub, tmp_path)
    for page in range(ring):
        following = f"{hub.endpoint}/api/models/ada/tiny-GGUF/{what}/main?page={(page + 1) % ring}"
        hub.fail(f"/{what}/main.page={page}", times=None, headers={"Link": f'<{following}>; rel="next"'})
    hub.fail(
        f"/{what}/",
        times=None,
        headers={"Link": f'<{hub.endpoint}/api/models/ada/tiny-GGUF/{what}/main?page=0>; rel="next"'},
    )
    with pytest.raises(HubFailed, match=r"no end|ring"):
        publish(
            gguf_release(tmp_path / "new", "Q8_0", seed=1),
            quick(hub, token),
            mode="pr" if what == "commits" else "main",
        )


def test_a_list_of_models_whose_pages_go_round_ends_in_an_error(hub: Hub):
    hub.model("ada/m")
    hub.fail(r"GET /api/models\?", times=None, headers={"Link": f'<{hub.endpoint}/api/models?cursor=0>; rel="next"'})
    with pytest.raises(HubFailed, match="no end"):
        list(pages(Reader(quick(hub)), author_query("ada")))


def test_discussions_that_go_on_for_ever_are_not_counted_to_their_end(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(session, "MOST_REQUESTS", 40)
    token = released(hub, tmp_path)
    lie = {"discussions": [], "count": 10**9, "start": 0}
    hub.fail("GET .*/discussions", times=None, instead=json.dumps(lie).encode())
    with pytest.raises(HubFailed, match="for ever"):
        publish(gguf_release(tmp_path / "new", "Q8_0", seed=1), quick(hub, token, seconds=60), mode="pr")


def test_a_conflict_that_never_ends_is_given_up(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "MOST_REQUESTS", 40)
    conflict = b'{"error": "Cannot create repo: another conflicting operation is in progress"}'
    hub.fail("POST /api/repos/create", times=None, status=409, instead=conflict)
    with pytest.raises(HubFailed):
        publish(gguf_release(tmp_path, "Q8_0"), quick(hub, hub.user("ada")), mode="main")


@pytest.mark.parametrize("seconds", [0.5])
def test_an_answer_that_trickles_is_given_up(hub: Hub, seconds: float):
    hub.model("ada/m")
    fault = hub.fail("GET /api/models/ada/m", times=None, trickle=0.1)
    with pytest.raises(HubFailed, match="did not answer"):
        Reader(quick(hub, seconds=seconds)).get("/api/models/ada/m")
    with pytest.raises(HubFailed, match="did not answer"):
        read_current("ada/m", quick(hub, seconds=seconds), mode="main")
    assert fault.hit == 4, "two attempts each"


@pytest.mark.parametrize("packed", [False, True])
def test_a_bomb_is_not_read_to_its_end(hub: Hub, packed: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "LARGEST_ANSWER", 10**6)
    bomb = gzip.compress(bytes(10**7)) if packed else b" " * 65_536
    hub.fail(
        "GET /api/whoami",
        times=None,
        instead=bomb,
        endless=not packed,
        headers={"Content-Encoding": "gzip"} if packed else {},
    )
    with pytest.raises(HubFailed, match="more than"):
        token_rights(quick(hub, hub.user("ada")), ["ada"])


# --- odd JSON --------------------------------------------------------------------------------------------

ODD = [b"{}", b"null", b"[]", b"[1]", b'"x"', b'{"error": "sorry"}', b"<html>", b"", b"{", b"[" * 100_000]
ENDPOINTS = [
    "whoami",
    "discussions",
    "refs",
    "tree/",
    "commits/",
    "preupload",
    "objects/batch",
    "repos/create",
    "validate-yaml",
]


@pytest.mark.parametrize("mode", ["main", "pr"])
@pytest.mark.parametrize("body", ODD, ids=lambda body: body[:8].decode() or "empty")
def test_odd_answers_while_publishing_end_in_a_sentence_or_a_release(
    hub: Hub, tmp_path: Path, body: bytes, mode: Literal["pr", "main"]
):
    token = released(hub, tmp_path)
    release = gguf_release(tmp_path / "new", "Q8_0", seed=1)
    for endpoint in ENDPOINTS:
        hub.heal()
        hub.fail(endpoint, times=None, instead=body)
        with suppress(HubbotError):
            publish(release, quick(hub, token), mode=mode)
    hub.heal()
    publish(release, hub.seen(token), mode=mode)
    head = "main" if mode == "main" else "refs/pr/1"
    titles = [commit.title for commit in hub.history("ada/tiny-GGUF", head)]
    assert titles.count(release.title) == 1


@pytest.mark.parametrize("body", ODD, ids=lambda body: body[:8].decode() or "empty")
def test_an_odd_answer_to_a_commit_is_looked_after(hub: Hub, tmp_path: Path, body: bytes):
    token = released(hub, tmp_path)
    hub.fail("POST .*/commit/", instead=body)
    before = hub.journal.count("POST .*/commit/")
    receipt = publish(gguf_release(tmp_path / "new", "Q8_0", seed=1), quick(hub, token), mode="main")
    assert receipt.status == "published"
    assert hub.journal.count("POST .*/commit/") == before + 1


# --- no list ---------------------------------------------------------------------------------------------

NO_LIST = [b"{}", b"null", b'{"error": "sorry"}', b'"x"', b"[{}]", b"[null]"]


@pytest.mark.parametrize("body", NO_LIST, ids=bytes.decode)
def test_what_is_no_list_is_no_empty_list(hub: Hub, body: bytes):
    sha = hub.model("ada/m", {"config.json": "{}"})
    hub.fail("GET /api/", times=None, instead=body)
    reader = Reader(quick(hub))
    hub.collections["ada/x-1"] = {}
    asked: list[Callable[[], object]] = [
        lambda: [candidates(page) for page in pages(reader, author_query("ada"))],
        lambda: read_model(reader, "ada/m"),
        lambda: collection(reader, "ada/x-1"),
    ]
    if not body.startswith(b"["):
        asked.append(lambda: read_contents(reader, "ada/m", sha, tags=False))
    for ask in asked:
        with pytest.raises(HubFailed):
            ask()


def test_a_304_that_nobody_asked_for_is_no_answer(hub: Hub):
    hub.model("ada/m")
    hub.fail("GET /api/", times=None, status=304)
    with pytest.raises(HubFailed):
        Reader(quick(hub)).get("/api/models/ada/m")


# --- the storage ------------------------------------------------------------------------------------------


def test_an_address_of_the_storage_that_has_expired_is_asked_for_again(hub: Hub, tmp_path: Path):
    hub.model("ada/tiny", sharded())
    fault = hub.fail("GET /storage/", status=403)
    fetch("ada/tiny", quick(hub), into=tmp_path)
    assert fault.hit == 1


def test_a_storage_that_goes_on_refusing_is_not_the_tokens_fault(hub: Hub, tmp_path: Path):
    hub.model("ada/tiny", sharded())
    hub.fail("GET /storage/", status=403, times=None)
    with pytest.raises(HubFailed, match="storage refused") as refused:
        fetch("ada/tiny", quick(hub), into=tmp_path)
    assert type(refused.value) is HubFailed


def test_an_upload_whose_address_has_expired_gets_another(hub: Hub, tmp_path: Path):
    fault = hub.fail("PUT /storage/", status=403)
    receipt = publish(gguf_release(tmp_path, "Q8_0"), quick(hub, hub.user("ada")), mode="main")
    assert (receipt.status, fault.hit) == ("published", 1)


def test_a_missing_model_is_still_a_missing_model(hub: Hub):
    with pytest.raises(SourceNotFound):
        read_model(Reader(quick(hub)), "ada/nothing")
