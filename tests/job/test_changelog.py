"""What a card says of the release before it, and that this one's files stay where the card says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi

from hubbot.cards.changes import changelog
from hubbot.domain import Family, Job
from hubbot.hub.rate_limit import RateLimit
from hubbot.record.file import read_record
from tests.bot.cheap import cheap_run, files_of_a_model, settings_for
from tests.hub.server import Hub


def test_a_second_release_says_what_changed_and_where_the_first_one_stays(hub: Hub, tmp_path):
    token = hub.user("bot", orgs={"ours": "write"})
    api = HfApi(endpoint=hub.endpoint, token=token)

    def card(seed: int) -> str:
        sha = hub.model("maker/one", files_of_a_model(seed))
        cheap_run(
            Job(model="maker/one", revision=sha), RateLimit(), settings=settings_for(tmp_path), hub=hub.seen(token)
        )
        return Path(api.hf_hub_download("ours/one-GGUF", "README.md", cache_dir=tmp_path / f"cache-{seed}")).read_text()

    assert "## What changed" not in card(1)
    first = api.model_info("ours/one-GGUF").sha
    text = card(2)
    section = text.partition("<!-- hubbot:begin changes -->")[2].partition("<!-- hubbot:end changes -->")[0]
    assert "files of the source: `model.safetensors`" in section
    assert "source revision" in section
    assert "`Q8_0`" in section
    assert "gptq" not in section, "of another repo"
    [commit] = re.findall(r"/ours/one-GGUF/tree/([0-9a-f]{40})\)", section)
    assert commit == first
    old = {item.path for item in api.list_repo_tree("ours/one-GGUF", revision=commit)}
    assert any(path.endswith(".gguf") for path in old)
    assert text.count("## What changed") == 1
    assert card(3).count("## What changed") == 1, "the release before, at the commit, has the change before"


def test_of_the_same_release_nothing_is_said_and_a_template_alone_is_named(hub: Hub, tmp_path):
    sha = hub.model("maker/one", files_of_a_model(1))
    settings = settings_for(tmp_path)
    cheap_run(Job(model="maker/one", revision=sha), RateLimit(), settings=settings, hub=hub.seen(hub.user("bot", orgs={"ours": "write"})))  # fmt: skip
    record = read_record(next(tmp_path.rglob("hubbot.json")))
    assert changelog(record, record, Family.GGUF, before="x") == ""
    assert changelog(None, record, Family.GGUF, before="x") == ""
    mended = replace(record, chat_template="{{ messages }}")
    told = changelog(record, mended, Family.GGUF, before="x")
    assert re.search(r"chat template: none → `[0-9a-f]{12}`", told)
    assert "| Variant |" not in told
