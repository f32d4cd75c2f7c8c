"""A hostile repo on the Hub goes through the whole of `hubbot run --publish`: nothing of it is ever shown to anybody."""

from __future__ import annotations

import pytest

from hubbot.cli import main
from hubbot.errors import SourceRefused, Unsupported
from tests.hostile import model, repos
from tests.hub import Hub
from tests.tiers import suite

CASES = (
    "a-header-of-100-gigabytes",
    "tensors-that-overlap",
    "a-tensor-named-twice-in-one-header",
    "a-tensor-name-with-a-newline-and-workflow-command",
    "an-index-that-names-etc-passwd",
    "pickle-only",
    "a-thousand-million-layers",
    "remote-code",
    "an-architecture-with-markup",
    "a-chat-template-of-10-megabytes",
    "a-tokenizer-of-remote-code",
    "yaml-that-calls-python",
)


@pytest.mark.slow
@pytest.mark.parametrize("case", suite(CASES, first=3))
def test_a_hostile_repo_is_refused_on_its_way_and_nothing_is_published(hub: Hub, tmp_path, monkeypatch, capsys, case):
    folder = model.write_model(tmp_path / "model")
    repos.BAD[case][0](folder)
    hub.model("maker/bad", folder)
    monkeypatch.setenv("HF_TOKEN", hub.user("bot", orgs={"ours": "write"}))
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("Words and more words. " * 5_000)
    before = sorted(path for path in tmp_path.rglob("*"))
    hub.journal.clear()
    arguments = (
        f"--publish main --namespace ours --out out --variants gptq-4bit-128g --calibration {text} --evaluation none"
    )
    with pytest.raises(SystemExit) as ended:
        main(["run", "maker/bad", *arguments.split()])
    said = capsys.readouterr().err
    assert ended.value.code in (SourceRefused.exit_code, Unsupported.exit_code), said
    assert said.strip().splitlines()[-1].startswith("error: ")
    assert {name for _, name in hub.store.repos} == {"maker/bad"}
    assert [request.line for request in hub.journal.requests if request.method != "GET"] == []
    outside = [
        path for path in tmp_path.rglob("*") if path not in before and tmp_path / "out" not in (path, *path.parents)
    ]
    assert outside == []
    assert not (tmp_path / "out" / "gptq").exists()
