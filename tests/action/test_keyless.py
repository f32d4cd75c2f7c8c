"""Publishing without a stored token: a server on loopback plays GitHub's identity service and the Hub."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hubbot.action.inputs import read_inputs
from hubbot.action.work import hub_of
from hubbot.bot import github
from hubbot.bot.github import GitHub
from hubbot.errors import HubFailed
from hubbot.hub import keyless
from hubbot.hub.client import Hub
from hubbot.hub.hosted_jobs import start_hosted_job
from hubbot.hub.keyless import keyless_token
from hubbot.settings.watch import JobSettings


class Both(BaseHTTPRequestHandler):
    """GET /id: GitHub says who the job is, for one audience. POST /oauth/token: the Hub believes it, or not."""

    trusted = "me/name-GGUF"

    def log_message(self, *_):
        pass

    def answer(self, status, values):
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.headers["Authorization"] != "Bearer runner":
            return self.answer(401, {"message": "who are you"})
        return self.answer(200, {"value": f"identity for {self.path.rpartition('audience=')[2]}"})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = asked["subject_token"].startswith("identity for http") and asked["resource"] == self.trusted
        return (
            self.answer(200, {"access_token": "hf_jwt_short"})
            if known
            else self.answer(403, {"error": "No trusted publisher"})
        )


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Both)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{address}/id")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "runner")
    yield address
    server.shutdown()
    server.server_close()


def saying(text: bytes):
    """What answers any request with this text."""

    def say(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    return say


def test_the_jobs_identity_becomes_a_token_for_one_repo(hub):
    assert keyless_token("me/name-GGUF", Hub(endpoint=hub)) == "hf_jwt_short"


def test_a_repo_that_trusts_nobody_gives_no_token_and_says_where_to_say_so(hub):
    with pytest.raises(HubFailed, match="trusted publisher"):
        keyless_token("me/other", Hub(endpoint=hub))


def test_a_job_without_the_permission_is_told_which_one_it_needs(hub, monkeypatch):
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
    with pytest.raises(HubFailed, match="id-token: write"):
        keyless_token("me/name-GGUF", Hub(endpoint=hub))


@pytest.mark.parametrize("where", ["GET", "POST"])
@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'"hf_x"', b"{}", b'{"value": 5, "access_token": 5}', b'{"access_token": ""}']
)
def test_an_odd_answer_of_either_service_is_a_sentence(hub, monkeypatch, where, text):
    monkeypatch.setattr(Both, f"do_{where}", saying(text))
    with pytest.raises(HubFailed):
        keyless_token("me/name-GGUF", Hub(endpoint=hub))


def test_an_answer_that_trickles_is_not_waited_for(hub, monkeypatch):
    def trickle(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        for _ in range(300):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.1)

    monkeypatch.setattr(Both, "do_GET", trickle)
    monkeypatch.setattr(keyless, "SECONDS", 1.0)
    monkeypatch.setattr(github, "LONGEST", 1.0)
    with pytest.raises(HubFailed):
        keyless_token("me/name-GGUF", Hub(endpoint=hub))
    with pytest.raises(HubFailed, match="took more than 1 s"):
        GitHub(repo="a/b", token="t", url=hub).ask("GET", "/issues/1")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'"x"', b"{}", b'{"id": {}}'])
def test_an_odd_answer_about_a_job_is_a_sentence(hub, monkeypatch, text):
    monkeypatch.setattr(Both, "do_POST", saying(text))
    job = JobSettings(image="hubbot", namespace="me")
    with pytest.raises(HubFailed):
        start_hosted_job(["hubbot"], job, Hub(endpoint=hub, token="hf_x"), secrets={})


def test_the_actions_input_names_the_repo_and_only_a_publication_asks_for_the_token(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", hub)
    given = {"INPUT_MODEL": "org/name", "INPUT_OIDC-RESOURCE": "me/name-GGUF", "INPUT_NAMESPACE": "me"}

    def token(**more: str) -> str | None:
        return hub_of(read_inputs(given | more, tmp_path)).token

    assert token(INPUT_COMMAND="publish", INPUT_PUBLISH="main") == "hf_jwt_short"
    assert token(INPUT_COMMAND="publish", INPUT_PUBLISH="main", INPUT_TOKEN="hf_mine") == "hf_mine"
    assert token(INPUT_COMMAND="plan", INPUT_PUBLISH="main") is None
    assert token(INPUT_COMMAND="run") is None
