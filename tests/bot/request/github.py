"""A GitHub of one repository with issues, comments, labels, permissions and runs; it keeps what it is told.

Its clock goes on by one second with every request, and numbers of comments grow, as GitHub's do.
"""

from __future__ import annotations

import json
import re
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

REPO, TOKEN, BOT = "ours/releases", "ghs_of_the_tests", "github-actions[bot]"


class GitHub:
    def __init__(self) -> None:
        self.issues: dict[int, dict[str, Any]] = {}
        self.comments: dict[int, list[dict[str, Any]]] = {}
        self.events: dict[int, list[dict[str, Any]]] = {}
        self.permissions = {"maintainer": "write", "owner": "admin", "triager": "read", "asker": "read"}
        self.runs: dict[int, str] = {}  # run -> status
        self.asked: list[tuple[str, str]] = []
        self.failures: list[tuple[str, int]] = []  # "METHOD path" pattern, status; each once
        self.now = datetime(2026, 11, 1, 12, tzinfo=UTC)
        self.serial = 1000
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    # --- what people do -------------------------------------------------------------------------------

    def open(self, body: str, *, who: str = "asker", labels: tuple[str, ...] = ("quantize",), title: str = "") -> int:
        number = len(self.issues) + 1
        self.issues[number] = {
            "number": number,
            "title": title,
            "user": {"login": who},
            "body": body,
            "state": "open",
            "labels": [{"name": name} for name in labels],
        }
        self.comments[number], self.events[number] = [], []
        return number

    def say(self, number: int, text: str, *, who: str = "asker") -> dict[str, Any]:
        self.serial += 1
        made = {"id": self.serial, "user": {"login": who}, "body": text, "created_at": self.tick()}
        self.comments[number].append(made)
        return made

    def label(self, number: int, name: str, *, who: str) -> None:
        self.serial += 1
        event = {"id": self.serial, "event": "labeled", "actor": {"login": who}, "label": {"name": name}}
        self.events[number].append(event | {"created_at": self.tick()})

    def tick(self) -> str:
        self.now += timedelta(seconds=1)
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    # --- what is seen ---------------------------------------------------------------------------------

    def own(self, number: int) -> list[str]:
        """The texts of our comments."""
        return [one["body"] for one in self.comments[number] if one["user"]["login"] == BOT]

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:  # noqa: C901 -- a row an address
        self.tick()
        self.asked.append((method, path))
        for one in self.failures:
            if re.search(one[0], f"{method} {path}"):
                self.failures.remove(one)
                return one[1], {"message": "as ordered"}
        match [method, *path.removeprefix(f"/repos/{REPO}").strip("/").split("/")]:
            case ["GET", ""]:
                return 200, {"full_name": REPO}
            case ["GET", "issues", number]:
                return 200, self.issues[int(number)]
            case ["GET", "issues", number, "comments" | "events" as kind]:
                return 200, getattr(self, kind)[int(number)]
            case ["POST", "issues", number, "comments"]:
                return 201, self.say(int(number), body["body"], who=BOT)
            case ["PATCH", "issues", "comments", wanted]:
                [found] = [each for some in self.comments.values() for each in some if each["id"] == int(wanted)]
                found["body"] = body["body"]
                return 200, found
            case ["GET", "collaborators", login, "permission"]:
                may = self.permissions.get(unquote(login))
                return (200, {"permission": may}) if may else (404, {"message": "Not Found"})
            case ["GET", "actions", "runs", run]:
                status = self.runs.get(int(run))
                return (200, {"status": status}) if status else (404, {"message": "Not Found"})
            case ["POST", "actions", "runs", run, "cancel"]:
                ended = self.runs[int(run)] == "completed"
                self.runs[int(run)] = "completed"
                return (409, {}) if ended else (202, {})
            case _:
                return 404, {"message": "Not Found"}


def _handler(github: GitHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            if self.headers["Authorization"] == f"Bearer {TOKEN}":
                status, found = github.answer(self.command, urlsplit(self.path).path, body)
            else:
                status, found = 401, {"message": "Bad credentials"}
            text = json.dumps(found).encode()
            self.send_response_only(status)
            self.send_header("Date", format_datetime(github.now, usegmt=True))
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def __getattr__(self, name: str) -> Any:
            if name in ("do_GET", "do_POST", "do_PATCH"):
                return self._serve
            raise AttributeError(name)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler
