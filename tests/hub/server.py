"""The server: state, what tests order from it, and the thread that it runs in."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp
from aiohttp import web

from hubbot.hub.client import Hub as Seen
from hubbot.hub.rate_limit import RateLimit
from hubbot.hub.retry import Retry
from hubbot.hub.session import belongs_to
from tests.hub import catalogue, commits, community, control, files, hooks, repos  # noqa: F401  (they register routes)
from tests.hub.app import App
from tests.hub.blobs import Blobs
from tests.hub.faults import Fault, Journal, Window
from tests.hub.rights import Rights, Token, User
from tests.hub.store import MAIN, Commit, Discussion, Entry, Repo, Store

Content = bytes | str | Path
T = TypeVar("T")


class Hub:
    """A Hub on loopback. Every method may be called from the test's thread while it serves.

    endpoint: what HF_ENDPOINT is set to; storage: where large files lie, another host that wants no token.
    """

    def __init__(self, folder: Path | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._own = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="hub-"))
        self.host, self.port = host, port
        self.endpoint = self.storage = ""
        self.blobs = Blobs(self.folder / "blobs")
        self.store = Store(self.blobs)
        self.rights = Rights()
        self.journal = Journal()
        self.faults: list[Fault] = []
        self.parts: dict[tuple[str, int], tuple[Path, str]] = {}
        self.webhooks: dict[str, dict[str, Any]] = {}
        self.deliveries: list[tuple[dict[str, Any], int | None]] = []  # payload, status (None: no answer)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.warnings: dict[str, str] = {}
        self.serial = 0
        self.multipart_size: int | None = None  # bytes of a part; None: basic uploads only
        self.page_size = 1000
        self.api_window: Window | None = Window(1_000_000, 300)
        self.commit_window: Window | None = None
        self._secret = secrets.token_bytes(16)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._started: Future[None] = Future()
        self._pending: set[asyncio.Task[None]] = set()

    # --- life -----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            runner = self._loop.run_until_complete(self._listen())
        except BaseException as error:
            self._started.set_exception(error)
            raise
        self._started.set_result(None)
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _listen(self) -> web.ServerRunner:
        runner = web.ServerRunner(web.Server(App(self)), shutdown_timeout=0)  # type: ignore[arg-type]
        await runner.setup()
        # Large files come from another host name, so that a token sent there is seen.
        for host, port in ((self.host, self.port), ("127.0.0.2", 0)):
            site = web.TCPSite(runner, host, port)
            await site.start()
        api, storage = (address[1] for address in runner.addresses)
        self.port = api
        self.endpoint = f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{api}"
        self.storage = f"http://127.0.0.2:{storage}"
        return runner

    def _call(self, function: Callable[[], T]) -> T:
        """Run something on the server's thread, where the state is touched."""
        if threading.current_thread() is self._thread or not self._thread.is_alive():
            return function()

        async def wrapped() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(wrapped(), self._loop).result(600)

    def seen(self, token: str | None = None, *, retry: Retry | None = None, limit: RateLimit | None = None) -> Seen:
        """What hubbot is given to read this server and to publish there; without waiting, unless it is told to."""
        return Seen(
            endpoint=self.endpoint,
            token=token,
            retry=retry or Retry(sleep=lambda _: None),
            commits=limit or RateLimit(),
        )

    # --- users ----------------------------------------------------------------------------------------

    def user(
        self,
        name: str,
        *,
        orgs: Mapping[str, str] | None = None,
        scope: str = "write",
        permissions: Mapping[str, tuple[str, ...]] | None = None,
        token: str | None = None,
    ) -> str:
        """A new token of a user, who is created if need be. scope: read, write or fineGrained."""
        user = self.rights.users.setdefault(name, User(name))
        user.orgs.update(orgs or {})
        self.rights.orgs.update(orgs or {})
        value = token or "hf_" + secrets.token_hex(17)
        belongs_to(value, self.endpoint)  # for tests that give the client a token themselves
        self.rights.tokens[value] = Token(value, user, scope, dict(permissions or {}))
        return value

    def revoke(self, token: str, *, after: int = 0) -> None:
        """The token is worth nothing once `after` more requests have used it."""
        self.rights.tokens[token].uses_left = after

    # --- repositories ---------------------------------------------------------------------------------

    def find(self, kind: str, repo_id: str) -> Repo | None:
        return self.store.repos.get((kind, repo_id))

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        return self.store.repos[kind, repo_id]

    def model(self, repo_id: str, contents: Mapping[str, Content] | Path | None = None, **options: Any) -> str:
        """A model repo with these files (or a folder's) on main; returns the commit's sha."""
        return self._make("model", repo_id, contents, options)

    def models(self, many: Mapping[str, Mapping[str, Content]]) -> None:
        """Many model repos at once: repo id -> files."""

        def make() -> None:
            for repo_id, contents in many.items():
                self._make("model", repo_id, contents, {})

        self._call(make)

    def dataset(self, repo_id: str, contents: Mapping[str, Content] | Path | None = None, **options: Any) -> str:
        return self._make("dataset", repo_id, contents, options)

    def _make(self, kind: str, repo_id: str, contents: Mapping[str, Content] | Path | None, options: dict) -> str:
        def make() -> str:
            repo = self.store.create(kind, repo_id, private=options.pop("private", False), author=repo_id.split("/")[0])
            for name, value in options.items():
                setattr(repo, name, value)
            return repo.refs[MAIN]

        sha = self._call(make)
        return self.commit(repo_id, contents, kind=kind, message="Add files") if contents else sha

    def commit(
        self,
        repo_id: str,
        contents: Mapping[str, Content | None] | Path,
        *,
        kind: str = "model",
        revision: str = "main",
        message: str = "Change files",
        author: str | None = None,
        date: str | None = None,
    ) -> str:
        """Commit behind everybody's back, as another person would; None deletes a path. Returns the sha."""
        if isinstance(contents, Path):
            contents = {str(p.relative_to(contents)): p for p in sorted(contents.rglob("*")) if p.is_file()}
        repo = self.repo(repo_id, kind)
        entries = {path: self._entry(repo, path, content) for path, content in contents.items()}

        def change() -> str:
            ref = repo.branch_of(revision)
            old = repo.refs[ref]
            tree = {**repo.commits[old].files, **entries}
            kept = {path: entry for path, entry in tree.items() if entry is not None}
            made = self.store.advance(repo, ref, kept, message, "", author or repo.namespace, date=date)
            self.ref_moved(repo, ref, old, made.id)
            return made.id

        return self._call(change)

    def _entry(self, repo: Repo, path: str, content: Content | None) -> Entry | None:
        if content is None:
            return None
        if isinstance(content, str):
            content = content.encode()
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if isinstance(content, Path):
            with content.open("rb") as stream:
                sample = stream.read(512)
        else:
            sample = content[:512]
        if size and self.store.is_large(repo, repo.commit_at("main").files, path, size, sample):
            sha256 = self.blobs.put_file(content) if isinstance(content, Path) else self.blobs.put(content)
            repo.large.add(sha256)
            return self.store.large(sha256, size)
        return self.store.small(content.read_bytes() if isinstance(content, Path) else content)

    def delete_repo(self, repo_id: str, kind: str = "model") -> None:
        self._call(lambda: self._delete(repo_id, kind))

    def _delete(self, repo_id: str, kind: str) -> None:
        repo = self.repo(repo_id, kind)
        self.store.remove(repo)
        self.announce(repo, "delete", "repo")

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, Entry]:
        """Path -> size and hashes of a revision."""
        return dict(self.repo(repo_id, kind).commit_at(revision).files)

    def read(self, repo_id: str, path: str, revision: str = "main", kind: str = "model") -> bytes:
        return self.blobs.read(self.files(repo_id, revision, kind)[path].sha256)

    def history(self, repo_id: str, revision: str = "main", kind: str = "model") -> list[Commit]:
        """Commits of a revision, newest first."""
        repo = self.repo(repo_id, kind)
        return repo.history(repo.resolve(revision))

    def pulls(self, repo_id: str, kind: str = "model") -> list[Discussion]:
        return [item for item in self.repo(repo_id, kind).discussions.values() if item.is_pull_request]

    def merge_pull(self, repo_id: str, num: int, *, kind: str = "model", author: str | None = None) -> str:
        """Merge as the owner would in the browser; returns the merge commit's sha."""
        repo = self.repo(repo_id, kind)
        return self._call(lambda: self.merge(repo, repo.discussions[num], author or repo.namespace)).id

    def collection(self, slug: str, items: list[str], title: str = "A collection") -> None:
        self.collections[slug] = {"items": items, "title": title, "updated": self.store.clock.now()}

    # --- faults ---------------------------------------------------------------------------------------

    def fail(self, pattern: str, **what: Any) -> Fault:
        """Order a fault; see Fault for what can go wrong."""
        fault = Fault(pattern=pattern, **what)
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        self.faults.clear()

    # --- used by the routes ---------------------------------------------------------------------------

    def signature(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), "sha256").hexdigest()

    def signed(self, path: str) -> str:
        return f"{self.storage}/storage/{path}?X-Amz-Expires=3600&X-Amz-Signature={self.signature(path)}"

    def move_ref(self, repo: Repo, ref: str, sha: str | None) -> None:
        old = repo.refs.get(ref)
        if sha is None:
            repo.refs.pop(ref, None)
        else:
            repo.refs[ref] = sha
        self.ref_moved(repo, ref, old, sha)

    def ref_moved(self, repo: Repo, ref: str, old: str | None, new: str | None) -> None:
        self.announce(repo, "update", "repo.content", refs=[{"ref": ref, "oldSha": old, "newSha": new}])

    def add_event(self, item: Discussion, kind: str, author: str, data: dict[str, Any]) -> dict[str, Any]:
        self.serial += 1
        event = {
            "id": f"event{self.serial}",
            "type": kind,
            "createdAt": self.store.clock.now(),
            "author": {"name": author, "type": "user"},
            "data": data,
        }
        item.events.append(event)
        return event

    def add_comment(self, item: Discussion, author: str, text: str) -> dict[str, Any]:
        data = {"edited": False, "hidden": False, "latest": {"raw": text}}
        return self.add_event(item, "comment", author, data)

    def open_discussion(self, repo: Repo, title: str, text: str, author: str, *, base: str | None) -> Discussion:
        num = len(repo.discussions) + 1
        item = Discussion(num, title, author, self.store.clock.now(), base is not None, base=base or MAIN)
        repo.discussions[num] = item
        self.add_comment(item, author, text)
        self.announce(repo, "create", "discussion", discussion=item)
        return item

    def merge(self, repo: Repo, pull: Discussion, author: str) -> Commit:
        old = repo.refs[pull.base]
        commit = self.store.merge(repo, pull, author)
        self.add_event(pull, "status-change", author, {"status": "merged"})
        self.ref_moved(repo, pull.base, old, commit.id)
        self.announce(repo, "update", "discussion", discussion=pull)
        return commit

    # --- webhooks -------------------------------------------------------------------------------------

    def announce(
        self,
        repo: Repo,
        action: str,
        scope: str,
        *,
        refs: list[dict[str, Any]] | None = None,
        discussion: Discussion | None = None,
        comment: dict[str, Any] | None = None,
    ) -> None:
        """Send an event to every webhook that watches for it."""
        for hook in list(self.webhooks.values()):
            if hooks.watches(hook, repo, scope):
                body = hooks.payload(self.endpoint, hook, repo, action, scope, refs, discussion, comment)
                task = self._loop.create_task(self._deliver(hook, body))
                self._pending.add(task)
                task.add_done_callback(self._pending.discard)

    async def _deliver(self, hook: dict[str, Any], body: dict[str, Any]) -> None:
        headers = {"X-Webhook-Secret": hook["secret"]} if hook.get("secret") else {}
        try:
            timeout = aiohttp.ClientTimeout(total=10)
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(hook["url"], json=body, headers=headers) as answer,
            ):
                self.deliveries.append((body, answer.status))
        except (aiohttp.ClientError, TimeoutError):
            self.deliveries.append((body, None))

    def settle(self) -> None:
        """Wait until every delivery has been answered."""

        async def wait() -> None:
            while self._pending:
                await asyncio.wait(self._pending)

        asyncio.run_coroutine_threadsafe(wait(), self._loop).result(30)
