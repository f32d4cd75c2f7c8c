"""A release against a Hub that has one already: people's words stay, reviewers see what changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hubbot.cards.card import write_cards
from hubbot.cli import app
from hubbot.domain import File, Record, Status
from hubbot.errors import BadSettings, HubFailed
from hubbot.hub.client import Hub as Seen
from hubbot.job.review import PullRequest, parse_pull_request, review_text
from hubbot.job.upload import release
from hubbot.record.file import write_record
from hubbot.settings import PublishSettings, Settings
from tests.hub import Hub
from tests.records import record, score, sha


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


def made(out: Path, text: str, kld: float) -> Record:
    """A run of one small GGUF file with `text` in it."""
    plain = next(v for v in record().variants if v.name == "Q4_K_M")
    path = out / "gguf" / "Testling-1B-Q4_K_M.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    file = File(path="gguf/Testling-1B-Q4_K_M.gguf", size=len(text), sha256=sha(text))
    variant = replace(plain, files=(file,), score=score(kld), status=Status.PASSED)
    weights = {"model.safetensors": sha(text), "config.json": sha("config")}
    found = replace(record(), variants=(variant,), source=replace(record().source, files=weights))
    write_record(found, out)
    return found


def settings(mode: str) -> Settings:
    return Settings(publish=PublishSettings.model_validate({"mode": mode, "namespace": "ada"}))


def publish(hub: Hub, token: str, out: Path, run: Record, mode: str) -> None:
    write_cards(run, PublishSettings(), out)  # as a run does that was not told who publishes
    release(run, settings(mode), hub.seen(token), out=out)


def test_words_outside_the_marks_survive_a_new_release_on_main(hub: Hub, tmp_path: Path) -> None:
    token = hub.user("ada")
    publish(hub, token, tmp_path / "a", made(tmp_path / "a", "first", 0.05), "main")
    repo = "ada/Testling-1B-GGUF"
    card = hub.read(repo, "README.md").decode()
    assert "llama-server -hf ada/Testling-1B-GGUF:Q4_K_M" in card
    hub.commit(repo, {"README.md": card + "\nA maintainer's own words.\n"})
    publish(hub, token, tmp_path / "b", made(tmp_path / "b", "second", 0.02), "main")
    there = hub.read(repo, "README.md").decode()
    assert hub.read(repo, "Testling-1B-Q4_K_M.gguf") == b"second"
    assert there.endswith("A maintainer's own words.\n")
    sections, _, changed = there.partition("<!-- hubbot:begin changes -->")
    assert "0.0200" in sections
    assert "0.0500" not in sections
    assert "0.0500 → 0.0200" in changed


def test_a_pull_request_tells_what_changed_and_keeps_what_a_reviewer_wrote(hub: Hub, tmp_path: Path) -> None:
    token = hub.user("ada")
    repo = "ada/Testling-1B-GGUF"
    publish(hub, token, tmp_path / "a", made(tmp_path / "a", "first", 0.05), "main")
    publish(hub, token, tmp_path / "b", made(tmp_path / "b", "second", 0.02), "pr")
    assert "0.0500 → 0.0200 (-60.00 %)" in str(hub.pulls(repo)[0].events)
    edited = hub.read(repo, "README.md", "refs/pr/1").decode() + "\nSeen in review.\n"
    hub.commit(repo, {"README.md": edited}, revision="refs/pr/1")
    publish(hub, token, tmp_path / "c", made(tmp_path / "c", "third", 0.01), "pr")
    there = hub.read(repo, "README.md", "refs/pr/1").decode()
    assert hub.read(repo, "Testling-1B-Q4_K_M.gguf", "refs/pr/1") == b"third"
    assert there.endswith("Seen in review.\n")
    assert "0.0100" in there
    assert hub.read(repo, "Testling-1B-Q4_K_M.gguf") == b"first"


def test_a_review_shows_the_card_the_verdicts_and_the_numbers_against_main(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = hub.user("ada")
    publish(hub, token, tmp_path / "a", made(tmp_path / "a", "first", 0.05), "main")
    publish(hub, token, tmp_path / "b", made(tmp_path / "b", "second", 0.07), "pr")
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    for told in (f"{hub.endpoint}/ada/Testling-1B-GGUF/discussions/1", "ada/Testling-1B-GGUF#1"):
        shown = CliRunner().invoke(app, ["review", "--plain", told])
        assert shown.exit_code == 0, shown.output
        assert "# Testling-1B · GGUF" in shown.output
        assert "`Q4_K_M` ✓ passed" in shown.output
        assert "0.0500 → 0.0700 (+40.00 %)" in shown.output
        assert "**Worse than before: `Q4_K_M`.**" in shown.output
        assert "<!-- hubbot:" not in shown.output
    drawn = CliRunner().invoke(app, ["review", "ada/Testling-1B-GGUF#1"])
    assert drawn.exit_code == 0
    assert "Testling-1B · GGUF" in drawn.output
    assert "\x1b]" not in drawn.output


def test_a_pull_request_that_is_not_ours_is_refused(hub: Hub) -> None:
    hub.model("ada/m", {"README.md": "# mine"})
    with pytest.raises(HubFailed, match="was not opened by hubbot"):
        review_text(PullRequest(repo_id="ada/m", number=1), hub.seen(hub.user("ada")))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ada/m",
        "ada/m#0",
        "ada/m#x",
        "../../x#1",
        "../x#1",
        "https://evil.example/ada/m/discussions/1",
        "https://huggingface.co@evil.example/ada/m/discussions/1",
        "https://huggingface.co/m/discussions/1",
        "https://huggingface.co/a/b/discussions/1?x",
    ],
)
def test_only_addresses_of_this_hub_are_followed(text: str) -> None:
    with pytest.raises(BadSettings, match="no pull request"):
        parse_pull_request(text, Seen())
    assert parse_pull_request("https://huggingface.co/ada/m/discussions/12", Seen()) == PullRequest(
        repo_id="ada/m", number=12
    )
