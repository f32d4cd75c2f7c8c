"""A Job that a webhook has started: the rules of the watch judge what the Hub shows now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hubbot import cli
from hubbot.bot.webhook import SECRET_VARIABLE
from tests.bot.cheap import files_of_a_model
from tests.hub.server import Hub
from tests.jobs import command

SECRET = "a secret of the hook"


def _ran(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> list[tuple[str, str | None]]:
    """Model and revision of every run that the Job made of an event of a commit that is not the newest."""
    ran: list[tuple[str, str | None]] = []
    monkeypatch.setattr(cli, "_run", lambda name, settings, _call: ran.append((name, settings.revision)))
    payload: dict[str, Any] = {
        "event": {"action": "update", "scope": "repo.content"},
        "repo": {"type": "model", "name": model},
        "updatedRefs": [{"ref": "refs/heads/main", "oldSha": "1" * 40, "newSha": "2" * 40}],
    }
    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": hub.user("bot", orgs={"ours": "write"}),
        SECRET_VARIABLE: SECRET,
        "WEBHOOK_SECRET": SECRET,
        "WEBHOOK_REPO_ID": model,
        "WEBHOOK_PAYLOAD": json.dumps(payload),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = folder / "hubbot.toml"
    config.write_text(f'[watch]\nstate = "{folder}/state.sqlite"\n[publish]\nnamespace = "ours"\n')
    assert command("run", "--from-webhook", "--config", str(config)) == 0
    return ran


def test_the_commit_that_main_shows_now_is_made_however_old_the_event(hub, tmp_path, monkeypatch):
    newest = hub.model("maker/one", files_of_a_model())
    assert _ran(hub, tmp_path, monkeypatch, "maker/one") == [("maker/one", newest)]


def test_what_a_rule_leaves_alone_is_not_made_and_the_job_says_which(hub, tmp_path, monkeypatch, capsys):
    hub.model("maker/one", files_of_a_model(licence="cc-by-nd-4.0"))
    assert _ran(hub, tmp_path, monkeypatch, "maker/one") == []
    assert "(rule licence-forbids)" in "".join(capsys.readouterr())


def test_a_model_that_is_gone_is_not_made(hub, tmp_path, monkeypatch, capsys):
    assert _ran(hub, tmp_path, monkeypatch, "maker/gone") == []
    assert "maker/gone is not made: the Hub shows it no more" in "".join(capsys.readouterr())
