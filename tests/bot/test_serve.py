"""Deliveries: who may send them, which count, and that an answered one is never lost."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from hubbot.bot.deliver import Route, deliver_waiting, delivering
from hubbot.bot.ledger import events, jobs
from hubbot.bot.ledger.events import Event
from hubbot.bot.ledger.store import Ledger, open_ledger
from hubbot.bot.receiver import Receiver, receiving
from hubbot.bot.route import route_of
from hubbot.bot.verdicts import Verdict
from hubbot.bot.webhook import from_job, knows_secret, required_secret
from hubbot.bot.webhook_server import CONNECTIONS, make_app
from hubbot.domain import Job
from hubbot.errors import BadSettings, HubFailed, LedgerFailed
from hubbot.hub.rate_limit import RateLimit
from hubbot.hub.read.reader import Reader
from hubbot.settings import PublishSettings
from hubbot.settings.watch import JobSettings, ServeSettings
from tests.bot.cheap import cheap_run, files_of_a_model, settings_for
from tests.bot.parts import Clock
from tests.hub.server import Hub

SECRET = "s3cret-of-the-tests-0123456789"
GITHUB_TOKEN = "ghp_0123456789abcdefghij"


def delivery(model: str = "maker/one", ref: str = "refs/heads/main", sha: str = "2" * 40, **changes) -> dict:
    found = {
        "event": {"action": "update", "scope": "repo.content"},
        "repo": {"type": "model", "name": model, "id": "x", "private": False},
        "webhook": {"id": "hook", "version": 3},
        "updatedRefs": [{"ref": ref, "oldSha": "1" * 40, "newSha": sha}],
    }
    return {**found, **changes}


@dataclass
class Server:
    process: subprocess.Popen
    port: int
    state: Path

    def post(self, body: object, *, secret: str | None = SECRET, raw: bytes | None = None) -> tuple[int, dict]:
        sent = raw if raw is not None else json.dumps(body).encode()
        return self.ask("POST", "/webhook", sent, {"X-Webhook-Secret": secret} if secret is not None else {})

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text) if text.startswith(b"{") else {"text": text.decode()}

    def stored(self) -> set[tuple[str, str, str]]:
        with sqlite3.connect(self.state) as db:
            return set(db.execute("SELECT model, ref, sha FROM events"))


def start(state: Path, *, environ: dict[str, str] | None = None, arguments: tuple[str, ...] = ()) -> Server:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = "import sys; from hubbot.cli import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "serve", "--state", str(state), "--port", str(port), *arguments],
        env={**os.environ, "HUBBOT_WEBHOOK_SECRET": SECRET, **(environ or {})},
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stderr.readline()
    assert "listening" in line, line + process.stderr.read()
    return Server(process, port, state)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = start(tmp_path_factory.mktemp("serve") / "state.sqlite")
    yield found
    found.process.terminate()
    assert found.process.wait(20) == 0, "SIGTERM did not end it cleanly"


def test_a_change_of_main_is_stored_before_the_answer(server):
    code, said = server.post(delivery("maker/first"))
    assert (code, said) == (202, {"accepted": 1, "repeated": 0})
    assert ("maker/first", "refs/heads/main", "2" * 40) in server.stored()


def test_a_repeated_delivery_is_accepted_and_stored_once(server):
    for fresh in (1, 0, 0):
        assert server.post(delivery("maker/again")) == (202, {"accepted": fresh, "repeated": 1 - fresh})
    assert sum(model == "maker/again" for model, _, _ in server.stored()) == 1


def test_a_tag_counts(server):
    assert server.post(delivery("maker/tagged", ref="refs/tags/v1"))[0] == 202


@pytest.mark.parametrize(
    "changes",
    [
        {"updatedRefs": [{"ref": "refs/pr/1", "oldSha": None, "newSha": "2" * 40}]},
        {"updatedRefs": [{"ref": "refs/heads/dev", "oldSha": None, "newSha": "2" * 40}]},
        {"updatedRefs": [{"ref": "refs/heads/main", "oldSha": "2" * 40, "newSha": None}]},
        {"updatedRefs": []},
        {"event": {"action": "create", "scope": "repo"}},
        {"event": {"action": "delete", "scope": "repo"}},
        {"event": {"action": "update", "scope": "discussion.comment"}},
        {"repo": {"type": "dataset", "name": "maker/ignored"}},
    ],
)
def test_what_makes_no_model_new_is_ignored(server, changes):
    before = server.stored()
    assert server.post(delivery("maker/ignored", **changes)) == (200, {"accepted": 0, "repeated": 0})
    assert server.stored() == before


@pytest.mark.parametrize("secret", [None, "", "wrong", SECRET + "x", SECRET[:-1], "é" * 10])
def test_who_does_not_know_the_secret_is_sent_away(server, secret):
    before = server.stored()
    sent = secret.encode("utf-8").decode("latin-1") if secret else secret
    code, said = server.post(delivery("maker/stranger"), secret=sent)
    assert code == 401
    assert SECRET not in json.dumps(said)
    assert server.stored() == before


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps(delivery("../../etc/passwd")).encode(),
        json.dumps(delivery("maker/one\nSet-Cookie: x")).encode(),
        json.dumps(delivery("${{ github.token }}")).encode(),
        json.dumps(delivery("a/b/c")).encode(),
        json.dumps(delivery("m" * 300)).encode(),
        json.dumps(delivery(sha="main; rm -rf /")).encode(),
        json.dumps(delivery(updatedRefs=[{"ref": "refs/heads/main", "newSha": 7}])).encode(),
        json.dumps(delivery(updatedRefs=[{"ref": "refs/heads/main"}] * 1001)).encode(),
        json.dumps(delivery(event="update")).encode(),
        json.dumps(delivery(repo={"type": "model", "name": None})).encode(),
    ],
)
def test_a_body_that_is_no_payload_of_the_hub_is_refused(server, raw):
    before = server.stored()
    code, said = server.post(None, raw=raw)
    assert code == 422
    assert "No webhook payload" in said["error"]
    assert server.stored() == before


def test_a_body_above_the_limit_is_refused_told_or_not(server):
    assert server.post(None, raw=b" " * 1_000_001)[0] == 413
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        head = f"POST /webhook HTTP/1.1\r\nHost: x\r\nX-Webhook-Secret: {SECRET}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        try:
            for _ in range(40):
                connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        except OSError:
            pass
        assert b" 413 " in connection.recv(100)


def test_health_metrics_and_the_openapi_page(server):
    server.post(delivery("maker/metrics"))
    assert server.ask("GET", "/healthz") == (200, {"ok": True, "problem": None})
    text = server.ask("GET", "/metrics")[1]["text"]
    assert 'hubbot_deliveries_total{answer="accepted"}' in text
    assert 'hubbot_events{state="accepted"}' in text
    for line in text.splitlines():
        assert line.startswith("#") or len(line.rsplit(" ", 1)) == 2
    described = server.ask("GET", "/openapi.json")[1]
    assert set(described["paths"]) == {"/webhook", "/healthz", "/metrics"}
    assert set(described["paths"]["/webhook"]["post"]["responses"]) == {"200", "202", "401", "413", "422", "503"}
    assert server.ask("GET", "/docs")[0] == 200


def test_the_secret_is_in_no_title_log_or_file(server):
    title = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
    assert SECRET.encode() not in title
    for path in server.state.parent.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("secret", ["", "short"])
def test_without_a_secret_worth_the_name_nothing_starts(tmp_path, secret):
    command = "import sys; from hubbot.cli import main; main(sys.argv[1:])"
    ended = subprocess.run(
        [sys.executable, "-c", command, "serve", "--state", str(tmp_path / "s"), "--port", "0"],
        env={**os.environ, "HUBBOT_WEBHOOK_SECRET": secret},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == BadSettings.exit_code
    assert "HUBBOT_WEBHOOK_SECRET" in ended.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_what_was_answered_survives_sigkill(tmp_path):
    state = tmp_path / "state.sqlite"
    answered: set[str] = set()
    for life in range(3):
        server = start(state)
        ended = threading.Event()

        def send(share: int, server=server, ended=ended, life=life) -> None:
            number = 0
            while not ended.is_set():
                number += 1
                sha = f"{life:08x}{share:08x}{number:024x}"
                try:
                    if server.post(delivery(f"maker/m{share}-{number}", sha=sha))[0] == 202:
                        answered.add(sha)
                except (OSError, http.client.HTTPException):
                    return

        senders = [threading.Thread(target=send, args=(share,)) for share in range(4)]
        for sender in senders:
            sender.start()
        time.sleep(0.7)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        ended.set()
        for sender in senders:
            sender.join()
    assert len(answered) > 20
    with sqlite3.connect(state) as db:
        stored = {row[0] for row in db.execute("SELECT sha FROM events")}
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert answered <= stored


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs takes root")
def test_on_a_full_disk_deliveries_are_sent_back_for_later_and_taken_again_afterwards(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        server = start(disk / "state.sqlite")
        assert server.post(delivery("maker/before"))[0] == 202
        left = os.statvfs(disk)
        (disk / "ballast").write_bytes(b"\0" * (left.f_bavail * left.f_frsize - 4096))
        codes = [server.post(delivery(f"maker/m{n}", sha=f"{n:040x}"))[0] for n in range(1, 60)]
        assert 503 in codes
        assert server.ask("GET", "/healthz")[0] == 503
        (disk / "ballast").unlink()
        assert server.post(delivery("maker/after"))[0] == 202
        assert server.ask("GET", "/healthz")[0] == 200
        stored = {model for model, _, _ in server.stored()}
        answered = {f"maker/m{n}" for n, code in enumerate(codes, start=1) if code == 202}
        assert answered | {"maker/before", "maker/after"} <= stored
        server.process.terminate()
        server.process.wait(20)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_state_file_that_goes_bad_is_said_and_used_again_once_it_is_well(tmp_path):
    receiver = Receiver(tmp_path / "state.sqlite")
    receiver.path.write_bytes(b"no database at all" * 100)
    thread = threading.Thread(target=receiver.run, daemon=True)
    thread.start()
    event = Event(model="maker/one", ref="refs/heads/main", old=None, sha="2" * 40)

    async def store() -> list[bool]:
        return await asyncio.wait_for(receiver.store([event]), 10)

    with pytest.raises(LedgerFailed):
        asyncio.run(store())
    assert receiver.problem
    receiver.path.unlink()
    assert asyncio.run(store()) == [True]
    assert receiver.problem is None
    receiver.end()
    thread.join(10)
    assert not thread.is_alive()


class _Server(HTTPServer):
    """What it was sent, and how it shall answer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: list[Any] = []
        self.answers: list[int] = []


class _GitHub(BaseHTTPRequestHandler):
    server: _Server

    """The dispatches endpoint: 204, after the failures that were ordered."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers["Authorization"], json.loads(body)))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 204)
        self.send_header("Location", "http://127.0.0.2:9/stolen")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def github() -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), _GitHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def _github_server(github: HTTPServer, hub: Hub, folder: Path) -> Server:
    url = f"http://127.0.0.1:{github.server_port}"
    toml = folder / "hubbot.toml"
    toml.write_text('variants = "gptq-4bit-128g"\n[publish]\nnamespace = "ours"\n[serve]\nquiet = 0\n')
    arguments = ("--deliver", "github", "--github-repo", "me/fleet", "--github-url", url, "--config", str(toml))
    token = hub.user("bot", orgs={"ours": "write"})
    environ = {"GITHUB_TOKEN": GITHUB_TOKEN, "HF_TOKEN": token, "HF_ENDPOINT": hub.endpoint}
    return start(folder / "state.sqlite", environ=environ, arguments=arguments)


def _until(done, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert done()


def _settled(server: Server) -> bool:
    with sqlite3.connect(server.state) as db:
        return db.execute("SELECT count(*) FROM events WHERE state = 'accepted'").fetchone()[0] == 0


@pytest.mark.slow
def test_an_event_becomes_one_repository_dispatch(github, hub, tmp_path):
    sha = hub.model("maker/one", files_of_a_model(1))
    server = _github_server(github, hub, tmp_path)
    for _ in range(3):
        server.post(delivery("maker/one", sha=sha))
    _until(lambda: _settled(server))
    assert len(github.seen) == 1
    path, token, body = github.seen[0]
    assert path == "/repos/me/fleet/dispatches"
    assert token == f"Bearer {GITHUB_TOKEN}"
    assert body["event_type"] == "hubbot"
    assert body["client_payload"] == {"model": "maker/one", "revision": sha, "cause": "new"}
    server.process.terminate()
    assert server.process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.parametrize("answer", [500, 401, 302, 307])
def test_a_dispatch_that_fails_waits_in_the_state_file_and_no_redirect_is_followed(github, hub, tmp_path, answer):
    hub.model("maker/one", files_of_a_model(1))
    github.answers = [answer]
    server = _github_server(github, hub, tmp_path)
    server.post(delivery("maker/one"))
    _until(lambda: github.seen)
    server.process.terminate()
    text = server.process.communicate(timeout=20)[1]
    assert GITHUB_TOKEN not in text
    assert str(answer) in text
    with open_ledger(server.state, clock=lambda: time.time() + 3600) as ledger:
        [group] = events.waiting(ledger, taker="github").values()
        assert [accepted.failures for accepted in group] == [1]


@dataclass
class Handing:
    """A state file with a route to a list, judged by the real policy against a Hub."""

    hub: Hub
    ledger: Ledger
    route: Route
    sent: list[tuple[str, str]]
    errors: list[Exception]  # raised by the next deliveries
    clock: Clock

    def tell(self, model: str, *shas: str, ref: str = "refs/heads/main") -> None:
        for sha in shas:
            events.accept(self.ledger, [Event(model=model, ref=ref, old=None, sha=sha)], taker="github")

    def deliver(self) -> list[tuple[str, str]]:
        """What goes out now."""
        before = len(self.sent)
        deliver_waiting(self.ledger, self.route)
        return self.sent[before:]


@pytest.fixture
def handing(hub: Hub, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Handing]:
    reader = Reader(hub.seen(hub.user("bot", orgs={"ours": "write"})))
    settings = settings_for(tmp_path, **getattr(request, "param", {}))
    settings = settings.model_copy(update={"serve": ServeSettings(deliver="github", github_repo="me/fleet", quiet=0)})
    sent, errors, clock = [], [], Clock()

    def give(verdict: Verdict) -> None:
        if errors:
            raise errors.pop(0)
        sent.append((verdict.model, verdict.revision))

    made = route_of(settings, reader, config=None, github_token=GITHUB_TOKEN, secrets=[GITHUB_TOKEN])
    with open_ledger(tmp_path / "state.sqlite", clock=clock) as ledger:
        yield Handing(hub, ledger, replace(made, give=give), sent, errors, clock)


def test_late_and_out_of_order_events_hand_on_mains_head_once(handing):
    old = handing.hub.model("maker/one", files_of_a_model(1))
    new = handing.hub.commit("maker/one", {"model.safetensors": files_of_a_model(2)["model.safetensors"]})
    handing.tell("maker/one", new, old)
    assert handing.deliver() == [("maker/one", new)]
    handing.tell("maker/one", "7" * 40)
    assert handing.deliver() == []
    assert handing.hub.journal.count("GET /api/models/maker/one") == 2
    assert jobs.last_job(handing.ledger, "maker/one").state == "done"


def test_an_upload_in_many_commits_hands_its_model_on_once_when_it_is_quiet(handing):
    handing.route = replace(handing.route, quiet=300)
    handing.hub.model("maker/one", files_of_a_model(1))
    last = ""
    for seed in range(2, 5):
        last = handing.hub.commit("maker/one", {"model.safetensors": files_of_a_model(seed)["model.safetensors"]})
        handing.tell("maker/one", last)
        handing.clock.advance(200)
        assert handing.deliver() == []
    handing.clock.advance(100)
    assert handing.deliver() == [("maker/one", last)]
    handing.tell("maker/one", "7" * 40)
    handing.clock.advance(-2 * 86_400)
    assert events.waiting(handing.ledger, taker="github", quiet=300), "a clock set back freezes nothing"


@pytest.mark.parametrize("error", [HubFailed("GitHub answered 500"), http.client.IncompleteRead(b""), ValueError("?")])
def test_after_a_failed_delivery_the_newest_goes_out_and_never_an_older_one(handing, error):
    old = handing.hub.model("maker/one", files_of_a_model(1))
    new = handing.hub.commit("maker/one", {"model.safetensors": files_of_a_model(2)["model.safetensors"]})
    handing.errors.append(error)
    handing.tell("maker/one", old, new)
    assert handing.deliver() == []
    assert handing.deliver() == [], "not before its time"
    handing.clock.advance(11)
    assert handing.deliver() == [("maker/one", new)]


def test_a_tag_on_an_old_commit_hands_nothing_on(handing):
    old = handing.hub.model("maker/one", files_of_a_model(1))
    handing.tell("maker/one", old, ref="refs/tags/v1")
    assert handing.deliver() == []
    assert events.waiting(handing.ledger, taker="github") == {}


@pytest.mark.parametrize("handing", [{"updates": "tags"}], indirect=True)
def test_a_tag_hands_on_where_tags_are_what_counts(handing):
    sha = handing.hub.model("maker/one", files_of_a_model(1))
    handing.tell("maker/one", sha, ref="refs/tags/v1")
    assert handing.deliver() == [("maker/one", sha)]


def test_what_the_policy_leaves_alone_starts_nothing(handing):
    hub = handing.hub
    card = b"---\nlicense: mit\nbase_model: maker/one\nbase_model_relation: quantized\n---\n"
    hub.model("maker/quantized", {**files_of_a_model(3), "README.md": card})
    hub.model("maker/unlicensed", {**files_of_a_model(4), "README.md": b"# None\n"})
    for model in ("maker/quantized", "maker/unlicensed", "maker/gone"):
        handing.tell(model, "1" * 40)
    assert handing.deliver() == []
    assert events.waiting(handing.ledger, taker="github") == {}


def test_a_readme_of_a_published_model_and_the_release_itself_start_nothing(handing, tmp_path):
    sha = handing.hub.model("maker/one", files_of_a_model(1))
    token = handing.hub.user("bot", orgs={"ours": "write"})
    job = Job(model="maker/one", revision=sha)
    cheap_run(job, RateLimit(), settings=settings_for(tmp_path), hub=handing.hub.seen(token))
    handing.hub.commit("maker/one", {"README.md": b"---\nlicense: mit\n---\nNew words.\n"})
    for model in ("maker/one", "ours/one-GGUF", "ours/one-GPTQ"):
        handing.tell(model, handing.hub.history(model)[0].id)
    assert handing.deliver() == []
    new = handing.hub.commit("maker/one", {"model.safetensors": files_of_a_model(2)["model.safetensors"]})
    handing.tell("maker/one", new)
    assert handing.deliver() == [("maker/one", new)]


def test_a_job_is_started_with_what_publishes_it_or_not_at_all(hub, tmp_path):
    token = hub.user("bot", orgs={"ours": "write"})
    reader = Reader(hub.seen(token))
    settings = settings_for(tmp_path).model_copy(
        update={"serve": ServeSettings(deliver="job", quiet=0), "job": JobSettings(image="ghcr.io/example/hubbot:1")}
    )
    toml = tmp_path / "hubbot.toml"
    toml.write_text('[publish]\nmode = "pr"\nnamespace = "ours"\n')
    options = {"config": toml, "github_token": None, "secrets": [token]}
    sha = hub.model("maker/one", files_of_a_model(1))
    with open_ledger(tmp_path / "state.sqlite") as ledger:
        events.accept(ledger, [Event(model="maker/one", ref="refs/heads/main", old=None, sha=sha)], taker="job")
        assert deliver_waiting(ledger, route_of(settings, reader, **options)) == 1
    [job] = hub.jobs.values()
    assert job["sent"]["environment"] == {"HUBBOT_TOML": toml.read_text()}
    ran = subprocess.run(
        ["sh", "-c", job["sent"]["command"][2].replace("/tmp/", f"{tmp_path}/job-"), "sh", "echo", *job["sent"]["command"][4:]],
        env={**os.environ, "HUBBOT_TOML": toml.read_text()}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout == f"hubbot run maker/one --revision {sha} --config /tmp/hubbot.toml\n"
    assert (tmp_path / "job-hubbot.toml").read_text() == toml.read_text()
    unpublished = settings.model_copy(update={"publish": PublishSettings()})
    with pytest.raises(BadSettings, match=r"publish\.mode"):
        route_of(unpublished, reader, **options)
    with pytest.raises(BadSettings, match="image"):
        route_of(settings.model_copy(update={"job": JobSettings()}), reader, **options)


def test_a_thread_that_hands_on_outlives_what_it_meets_and_a_dead_one_is_seen(handing, monkeypatch, tmp_path):
    monkeypatch.setattr("hubbot.bot.deliver.PAUSE", 0.01)
    handing.tell("maker/one", "1" * 40)
    tries = []

    def broken(ledger, route):
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("a defect")

    monkeypatch.setattr("hubbot.bot.deliver.deliver_waiting", broken)
    with delivering(tmp_path / "state.sqlite", handing.route) as thread:
        _until(lambda: len(tries) > 3)
        assert thread.is_alive()
    app = make_app(Receiver(tmp_path / "s"), [thread], secret=SECRET, max_body=1000, state=tmp_path / "s")
    [healthz] = [route.endpoint for route in app.routes if isinstance(route, APIRoute) and route.path == "/healthz"]
    answer = asyncio.run(healthz())
    assert (answer.status_code, json.loads(answer.body)["problem"]) == (503, "the thread deliver has ended")


def test_a_receiver_outlives_a_defect_and_answers_who_waits(tmp_path, monkeypatch):
    found = []

    def broken(ledger, events, *, taker):
        found.append(taker)
        if len(found) == 1:
            raise MemoryError
        return [True] * len(events)

    monkeypatch.setattr("hubbot.bot.receiver.events.accept", broken)
    event = Event(model="maker/one", ref="refs/heads/main", old=None, sha="2" * 40)
    with receiving(tmp_path / "state.sqlite", taker="job") as (receiver, thread):
        with pytest.raises(LedgerFailed, match="MemoryError"):
            asyncio.run(receiver.store([event]))
        assert asyncio.run(receiver.store([event])) == [True]
        assert thread.is_alive()
    assert found == ["job", "job"]


def test_a_request_does_not_wait_for_ever_for_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("hubbot.bot.receiver.PATIENCE", 0.05)
    event = Event(model="maker/one", ref="refs/heads/main", old=None, sha="2" * 40)
    with pytest.raises(LedgerFailed, match="longer than"):
        asyncio.run(Receiver(tmp_path / "s").store([event]))  # nobody takes it


def test_github_wants_a_token_a_repository_and_https(tmp_path):
    from hubbot.bot.deliver import github as deliver_to_github

    with pytest.raises(BadSettings, match="github_repo"):
        deliver_to_github(ServeSettings(), "token")
    with pytest.raises(BadSettings, match="GITHUB_TOKEN"):
        deliver_to_github(ServeSettings(github_repo="a/b"), None)
    with pytest.raises(BadSettings, match="https"):
        deliver_to_github(ServeSettings(github_repo="a/b", github_url="http://example.org"), "token")


def test_the_secret_is_compared_whole():
    assert knows_secret(SECRET, SECRET)
    assert not knows_secret(None, SECRET)
    assert not knows_secret(SECRET[:-1], SECRET)
    with pytest.raises(BadSettings):
        required_secret({})


def _job_environment(**changes: str) -> dict[str, str]:
    return {
        "HUBBOT_WEBHOOK_SECRET": SECRET,
        "WEBHOOK_SECRET": SECRET,
        "WEBHOOK_REPO_ID": "maker/one",
        "WEBHOOK_PAYLOAD": json.dumps(delivery("maker/one")),
        **changes,
    }


def test_a_job_that_a_webhook_started_learns_its_model():
    found = from_job(_job_environment())
    assert [(event.model, event.sha) for event in found] == [("maker/one", "2" * 40)]


def test_a_job_started_by_a_pull_request_has_nothing_to_do():
    assert from_job(_job_environment(WEBHOOK_PAYLOAD=json.dumps(delivery(ref="refs/pr/3")))) == []


def test_a_job_started_by_a_tag_alone_has_nothing_to_do_and_one_beside_main_is_left_out():
    tag = {"ref": "refs/tags/v1", "oldSha": None, "newSha": "1" * 40}
    main = {"ref": "refs/heads/main", "oldSha": "1" * 40, "newSha": "2" * 40}
    for refs, shas in (([tag], []), ([main, tag], ["2" * 40])):
        found = from_job(_job_environment(WEBHOOK_PAYLOAD=json.dumps(delivery("maker/one", updatedRefs=refs))))
        assert [event.sha for event in found] == shas


@pytest.mark.parametrize(
    "changes",
    [
        {"WEBHOOK_SECRET": "wrong"},
        {"WEBHOOK_SECRET": ""},
        {"HUBBOT_WEBHOOK_SECRET": ""},
        {"WEBHOOK_PAYLOAD": ""},
        {"WEBHOOK_PAYLOAD": "{"},
        {"WEBHOOK_REPO_ID": "maker/other"},
    ],
)
def test_a_job_whose_webhook_is_not_ours_does_nothing(changes):
    with pytest.raises(BadSettings) as refused:
        from_job(_job_environment(**changes))
    assert SECRET not in str(refused.value)


@pytest.mark.slow
def test_half_said_requests_hold_neither_descriptors_nor_the_service(tmp_path):
    server = start(tmp_path / "state.sqlite")
    try:
        half = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(CONNECTIONS + 20)]
        for one in half:
            with suppress(OSError):  # the last ones are hung up on at once
                one.sendall(b"POST /webhook HT")
        descriptors = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        for one in half:
            with suppress(ConnectionResetError):
                assert one.recv(1) == b""
            one.close()
        assert server.post(delivery("maker/patient"))[0] == 202
        assert descriptors < CONNECTIONS + 50
    finally:
        server.process.terminate()
        server.process.communicate(timeout=20)
