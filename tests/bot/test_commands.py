"""The commands as a shell sees them: what they print, their exit codes, and how they end on a signal."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner

from hubbot.bot.cli import app, seconds
from hubbot.bot.ledger import jobs
from hubbot.bot.ledger.alive import worker
from hubbot.bot.ledger.store import open_ledger
from hubbot.errors import BadSettings, HubFailed, TokenRefused
from tests.bot.cheap import files_of_a_model
from tests.bot.parts import enqueue, run_verdict
from tests.hub.server import Hub

SECRET = "s3cret-of-the-tests-0123456789"


@pytest.fixture
def place(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a hubbot.toml, in front of a Hub of its own."""
    token = hub.user("bot", orgs={"ours": "write"})
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HUBBOT_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hubbot.toml").write_text(
        'variants = "gptq-4bit-128g"\n[publish]\nmode = "main"\nnamespace = "ours"\n'
        '[watch]\nauthors = ["maker"]\nstate = "state.sqlite"\n[job]\nimage = "ghcr.io/example/hubbot:1"\n'
    )
    return tmp_path


def call(*arguments: str):
    return CliRunner().invoke(app, arguments)


def test_a_dry_run_prints_the_table_and_queues_nothing(place, hub):
    hub.model("maker/one", files_of_a_model(1))
    hub.model("maker/two-GGUF", {"model.gguf": b"GGUF", "README.md": b"---\nlicense: mit\n---\n"})
    said = call("watch", "--dry-run", "--all")
    assert said.exit_code == 0, said.output
    rows = {line.split()[0]: line.split() for line in said.stdout.splitlines() if line.startswith("maker/")}
    assert rows["maker/one"][2:4] == ["run", "new"]
    assert rows["maker/two-GGUF"][2] == "skip"
    assert "1 new" in said.stdout
    with open_ledger(place / "state.sqlite") as ledger:
        assert jobs.last_job(ledger, "maker/one") is None


def test_watch_as_json_gives_every_verdict_and_queues(place, hub):
    sha = hub.model("maker/one", files_of_a_model(1))
    said = call("watch", "--json")
    assert said.exit_code == 0, said.output
    (verdict,) = json.loads(said.stdout)
    assert (verdict["model"], verdict["revision"], verdict["action"], verdict["rule"]) == (
        "maker/one",
        sha,
        "run",
        "new",
    )
    assert verdict["cost"] > 0
    state = json.loads(call("status", "--json").stdout)
    assert [job["model"] for job in state["queued"]] == ["maker/one"]
    assert state["jobs"]["queued"] == 1


def test_a_source_that_cannot_be_read_is_an_exit_code_after_the_others_are_done(place, hub):
    hub.model("maker/one", files_of_a_model(1))
    text = (place / "hubbot.toml").read_text().replace("[watch]", '[watch]\nmodels = ["maker/none"]')
    (place / "hubbot.toml").write_text(text)
    said = call("watch", "--json")
    assert isinstance(said.exception, HubFailed)
    with open_ledger(place / "state.sqlite") as ledger:
        assert jobs.last_job(ledger, "maker/one") is not None


def test_the_matrix_is_one_line_of_json_although_a_source_cannot_be_read(place, hub):
    sha = hub.model("maker/one", files_of_a_model(1))
    text = (place / "hubbot.toml").read_text().replace("[watch]", '[watch]\nmodels = ["maker/none"]')
    (place / "hubbot.toml").write_text(text)
    said = call("watch", "--matrix")
    assert said.exit_code == 0, said.exception
    assert said.stdout == json.dumps({"include": [{"model": "maker/one", "revision": sha}]}) + "\n"
    assert "model:maker/none" in said.stderr
    assert call("watch", "--matrix").stdout == '{"include": []}\n'


def test_a_matrix_that_nobody_could_read_is_given_out_again(place, hub, monkeypatch):
    hub.model("maker/one", files_of_a_model(1))

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        out = SimpleNamespace(write=len, flush=full)
        patch.setattr("hubbot.bot.cli.sys", SimpleNamespace(stdout=out, stderr=sys.stderr))
        assert isinstance(call("watch", "--matrix").exception, OSError)
    with open_ledger(place / "state.sqlite") as ledger:
        assert jobs.last_job(ledger, "maker/one").state == "queued"


def test_status_shows_what_failed_and_why_and_retry_makes_it_due(place):
    with open_ledger(place / "state.sqlite") as ledger, worker(ledger.path) as me:
        enqueue(ledger, run_verdict("maker/one"), settings="s", version="1")
        jobs.fail(ledger, jobs.claim(ledger, me), HubFailed("[red]the disk was full"), seconds=3, park=True)
    said = call("status")
    assert said.exit_code == 0
    assert "1 parked" in said.stdout
    assert "[red]the disk was full" in said.stdout
    assert "queued" in call("retry", "maker/one").stdout
    with open_ledger(place / "state.sqlite") as ledger:
        assert jobs.last_job(ledger, "maker/one").state == "queued"
    assert isinstance(call("retry", "maker/unknown").exception, BadSettings)


def test_status_of_a_fresh_folder_is_empty_and_not_an_error(place):
    assert call("status").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("watch", "--every", "30"),
        ("watch", "--every", "30m", "--dry-run"),
        ("watch", "--run", "--executor", "slurm"),
        ("webhook", "create"),
        ("webhook", "create", "--url", "https://x/webhook", "--job", "j"),
        ("yank", "maker/one", "--reason", "why"),
        ("yank", "maker/one", "--reason", " "),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(place, arguments):
    said = call(*arguments)
    assert isinstance(said.exception, BadSettings), said.output
    assert len(str(said.exception)) > 40


def test_times_are_read_as_people_write_them():
    assert [seconds(text) for text in ("90s", "30m", "2h", "1d")] == [90, 1800, 7200, 86400]
    for wrong in ("", "0m", "1.5h", "30", "m", "-5m", "1w"):
        with pytest.raises(BadSettings):
            seconds(wrong)


def test_webhooks_are_made_for_models_and_authors_listed_without_secret_and_deleted(place, hub):
    hub.rights.orgs.update({"ours": "write"})
    made = call("webhook", "create", "--url", "https://bot.example/webhook")
    assert made.exit_code == 0, made.exception
    listed = call("webhook", "list")
    assert "https://bot.example/webhook" in listed.stdout
    assert "maker" in listed.stdout
    assert SECRET not in listed.stdout
    (hook,) = hub.webhooks.values()
    assert hook["secret"] == SECRET
    assert hook["domains"] == ["repo"]
    shown = json.loads(call("webhook", "list", "--json").stdout)
    assert "secret" not in shown[0]
    assert call("webhook", "delete", made.stdout.strip()).exit_code == 0
    assert hub.webhooks == {}


def test_submit_starts_a_job_with_the_token_as_a_secret_and_nowhere_else(place, hub):
    said = call("submit", "maker/one", "--flavor", "l4x1")
    assert said.exit_code == 0, said.exception
    (job,) = hub.jobs.values()
    sent = job["sent"]
    assert sent["command"][4:] == ["hubbot", "run", "maker/one", "--config", "/tmp/hubbot.toml"]
    assert sent["environment"] == {"HUBBOT_TOML": (place / "hubbot.toml").read_text()}
    assert sent["dockerImage"] == "ghcr.io/example/hubbot:1"
    assert sent["flavor"] == "l4x1"
    token = os.environ["HF_TOKEN"]
    assert sent["secrets"] == {"HF_TOKEN": token}
    assert token not in json.dumps({key: value for key, value in sent.items() if key != "secrets"})
    assert token not in said.output


def test_the_documented_line_makes_a_scheduled_watch_that_has_this_config(place, hub):
    [line] = re.findall(r"`hubbot (submit watch .*?)`", (Path(__file__).parents[2] / "docs" / "bot.md").read_text())
    said = call(*shlex.split(line))
    assert said.exit_code == 0, said.exception
    (job,) = hub.jobs.values()
    assert job["what"] == "scheduled-jobs"
    assert job["sent"]["schedule"] == "@hourly"
    assert job["sent"]["concurrency"] is False
    spec = job["sent"]["jobSpec"]
    assert spec["command"][4:] == ["hubbot", "watch", "--run", "--config", "/tmp/hubbot.toml"]
    assert spec["environment"] == {"HUBBOT_TOML": (place / "hubbot.toml").read_text()}


def test_a_config_that_is_named_for_the_job_is_left_as_it_is(place, hub):
    assert call("submit", "maker/one", "--", "--config", "/in/the/image.toml").exit_code == 0
    (job,) = hub.jobs.values()
    assert job["sent"]["command"] == ["hubbot", "run", "maker/one", "--config", "/in/the/image.toml"]


def test_submit_without_an_image_or_a_token_says_so(place, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert isinstance(call("submit", "maker/one").exception, BadSettings)
    (place / "hubbot.toml").write_text("")
    monkeypatch.setenv("HF_TOKEN", "hf_something_else")
    assert isinstance(call("submit", "maker/one").exception, BadSettings)


def test_a_wrong_token_is_named_and_not_shown(place, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_thisIsNoTokenAtAll")
    said = call("watch")
    assert isinstance(said.exception, TokenRefused)
    assert "hf_thisIsNoTokenAtAll" not in str(said.exception)


DAEMON = """
import sys, time
from pathlib import Path
from hubbot import __version__
from hubbot.bot import daemon
from hubbot.bot.daemon import Bot, keep_watching
from hubbot.hub.read.reader import Reader
from hubbot.bot.ledger.alive import worker
from hubbot.bot.ledger.store import open_ledger
from hubbot.bot.stop import on_signals
from hubbot.bot.worker import Terms, work
from tests.bot.cheap import settings_for
from hubbot.hub.client import hub_of_environment
folder, busy = Path(sys.argv[1]), sys.argv[2] == "busy"
settings = settings_for(folder, authors=["maker"])
daemon.WAKE = 0.1
def run(job, commits):
    print("runs", job.model, flush=True)
    time.sleep(600)
with open_ledger(settings.watch.state) as ledger, worker(ledger.path) as me, on_signals() as stop:
    bot = Bot(reader=Reader(hub_of_environment()), ledger=ledger, settings=settings, version=__version__)
    print("watches", flush=True)
    keep_watching(bot, 600, (lambda l, s, b: work(l, run, s, Terms(worker=me), b)) if busy else None, stop)
print("ended", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("busy", [True, False])
def test_sigterm_ends_the_daemon_and_its_job_waits_untouched(place, hub, busy):
    hub.model("maker/one", files_of_a_model(1))
    child = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(place), "busy" if busy else "idle"], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "watches\n"
    if busy:
        assert child.stdout.readline() == "runs maker/one\n"
    else:
        time.sleep(1)
    child.send_signal(signal.SIGTERM)
    assert child.communicate(timeout=30)[0] == "ended\n"
    assert child.returncode == 0
    with open_ledger(place / "state.sqlite") as ledger:
        job = jobs.last_job(ledger, "maker/one")
        assert job is None or (job.state, job.failures) == ("queued", 0)
        assert job is not None or not busy


def test_the_hubs_own_webhook_reaches_serve_and_becomes_a_job(place, hub):
    from tests.bot.test_serve import start

    hub.model("maker/one", files_of_a_model(1))
    server = start(place / "state.sqlite", environ={"HUBBOT_WEBHOOK_SECRET": SECRET})
    try:
        assert call("webhook", "create", "--url", f"http://127.0.0.1:{server.port}/webhook").exit_code == 0
        HfApi(endpoint=hub.endpoint, token=os.environ["HF_TOKEN"])
        sha = hub.commit("maker/one", {"model.safetensors": files_of_a_model(2)["model.safetensors"]})
        deadline = time.monotonic() + 15
        while not server.stored() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.stored() == {("maker/one", "refs/heads/main", sha)}
    finally:
        server.process.terminate()
        server.process.wait(20)
    assert json.loads(call("watch", "--json").stdout)[0]["rule"] == "new"
    with open_ledger(place / "state.sqlite") as ledger:
        assert jobs.last_job(ledger, "maker/one").revision == sha
        assert next(iter(ledger.read("SELECT state FROM events")))["state"] == "delivered"


def _command_lines(root: int) -> bytes:
    """The command lines and titles of a process and everything below it, and what the latter have in their environment."""
    found, parents = [], {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
    family = {root}
    for _ in range(10):
        family |= {process for process, parent in parents.items() if parent in family}
    own = Path(f"/proc/{root}/cmdline").read_bytes() if Path(f"/proc/{root}").exists() else b""
    for process in family:
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{process}/cmdline").read_bytes()
            found += [line, Path(f"/proc/{process}/comm").read_bytes()]
            if line != own:  # the process itself, or a fork of it that has not become its program yet
                found.append(Path(f"/proc/{process}/environ").read_bytes())
    return b"\n".join(found)


@pytest.mark.slow
def test_no_token_is_shown_by_a_real_watch_that_runs_a_job(place, hub):
    hub.model("maker/one", files_of_a_model(1))
    hub.model("maker/two", files_of_a_model(2))
    hub.fail("GET .*/maker/two/resolve/", status=403, times=None)
    command = "import sys; from hubbot.cli import main; main(sys.argv[1:])"
    child = subprocess.Popen(
        [sys.executable, "-c", command, "watch", "--run", "--state", str(place / "state.sqlite")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "GITHUB_TOKEN": "ghp_0123456789abcdefghij"},
    )
    seen, children = b"", 0
    while child.poll() is None:
        lines = _command_lines(child.pid)
        children += b"hubbot.confine.program" in lines
        seen += lines
        time.sleep(0.05)
    said = child.stdout.read()
    assert children, "the confined process was not seen"
    assert b"maker/one: " in said
    assert b"maker/two: " in said
    written = b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file())
    assert len(written) > 10_000
    for token in (os.environ["HF_TOKEN"], "ghp_0123456789abcdefghij", SECRET):
        assert token.encode() not in said + seen + written
