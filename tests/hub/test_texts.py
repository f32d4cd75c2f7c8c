"""Texts from the Hub and from files; `datasets` itself reads them from the test Hub."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hubbot.domain import Text
from hubbot.errors import BadText, HubFailed, TokenRefused
from hubbot.hub.client import Hub as Seen
from hubbot.hub.read.datasets import fetch_text
from hubbot.hub.retry import Retry
from hubbot.settings import CalibrationSettings, ConversationSettings, EvaluationSettings, Settings
from tests.hub import Hub

ROWS = ["", " = Title = \n", "", " Some text . \n", "More."]
RETRY = Retry(attempts=3, sleep=lambda _: None)


def parquet(rows: list, column: str = "text") -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({column: rows}), stream)
    return stream.getvalue()


def add_wikitext(hub: Hub, **options) -> str:
    card = (
        "---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n"
        "  - {split: test, path: wikitext-2-raw-v1/test-*}\n  - {split: train, path: wikitext-2-raw-v1/train-*}\n---\n"
    )
    files: dict[str, str | bytes | Path] = {
        "README.md": card,
        "wikitext-2-raw-v1/test-00000-of-00001.parquet": parquet(ROWS),
        "wikitext-2-raw-v1/train-00000-of-00001.parquet": parquet(["", ""]),
    }
    return hub.dataset("Salesforce/wikitext", files, **options)


def add_c4(hub: Hub) -> str:
    card = "---\nconfigs:\n- config_name: en\n  data_files:\n  - {split: train, path: en/c4-train.*.json.gz}\n---\n"
    shards = {
        f"en/c4-train.{shard:05d}-of-00003.json.gz": gzip.compress(
            "".join(json.dumps({"text": f"document {shard} {i}", "url": "u"}) + "\n" for i in range(200)).encode()
        )
        for shard in range(3)
    }
    return hub.dataset("allenai/c4", {"README.md": card, **shards})


def rows(text: Text) -> list[str]:
    return [json.loads(line)["text"] for line in text.path.read_text().splitlines()]


@pytest.mark.slow
def test_wikitext_comes_whole_with_its_empty_rows_at_the_pinned_commit(hub: Hub, tmp_path: Path):
    sha = add_wikitext(hub)
    text = fetch_text(EvaluationSettings(), into=tmp_path, characters=None, hub=hub.seen(retry=RETRY))
    assert rows(text) == ROWS
    assert (text.name, text.revision) == ("Salesforce/wikitext:wikitext-2-raw-v1:test", sha)
    assert text.sha256 == hashlib.sha256(text.path.read_bytes()).hexdigest()
    assert all(sha in r.path for r in hub.journal.find("/datasets/Salesforce/wikitext/resolve/"))
    hub.journal.clear()
    again = fetch_text(EvaluationSettings(), into=tmp_path, characters=None, hub=hub.seen(retry=RETRY))
    assert again == text
    assert len(hub.journal.requests) == 1, "only the commit is asked for again"


@pytest.mark.slow
def test_c4_is_streamed_only_as_far_as_needed(hub: Hub, tmp_path: Path):
    add_c4(hub)
    text = fetch_text(CalibrationSettings(), into=tmp_path, characters=500, hub=hub.seen(retry=RETRY))
    assert rows(text)[:2] == ["document 0 0", "document 0 1"]
    assert 500 <= sum(map(len, rows(text))) < 520
    assert hub.journal.count("c4-train.0000[12]") == 0
    assert not any(request.with_token for request in hub.journal.requests)


@pytest.mark.slow
def test_private_datasets_come_with_a_token_that_no_process_shows(hub: Hub, tmp_path: Path, monkeypatch):
    token = hub.user("Salesforce")
    add_wikitext(hub, private=True)
    seen = []
    genuine = __import__("subprocess").run

    def watched(command, **options):
        seen.append((command, options["env"]))
        return genuine(command, **options)

    monkeypatch.setattr("hubbot.confine.ask.subprocess.run", watched)
    monkeypatch.setenv("HF_TOKEN", token)
    section = EvaluationSettings()
    fetch_text(section, into=tmp_path, characters=None, hub=hub.seen(token, retry=RETRY))
    assert token not in str(seen)
    with pytest.raises(BadText, match="no dataset"):
        fetch_text(section, into=tmp_path / "x", characters=None, hub=hub.seen(retry=RETRY))
    with pytest.raises(TokenRefused):
        fetch_text(section, into=tmp_path, characters=None, hub=hub.seen("hf_wrongwrong", retry=RETRY))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"split": "nothing"}, "nothing.*(test|train)"),
        ({"config": "nothing"}, "nothing.*wikitext-2-raw-v1"),
        ({"column": "body"}, "no column 'body'.*found text"),
        ({"split": "train"}, "holds no text"),
    ],
    ids=["split", "config", "column", "empty"],
)
def test_what_a_dataset_lacks_is_named(hub: Hub, tmp_path: Path, section: dict, words: str):
    add_wikitext(hub)
    with pytest.raises(BadText, match=words):
        fetch_text(EvaluationSettings(**section), into=tmp_path, characters=None, hub=hub.seen(retry=RETRY))
    assert list(tmp_path.glob("*.jsonl")) == []


def test_missing_datasets_and_revisions_are_bad_texts(hub: Hub, tmp_path: Path):
    add_wikitext(hub)
    for section in ({"dataset": "ada/nothing"}, {"revision": "v9"}):
        with pytest.raises(BadText, match="The Hub has no dataset"):
            fetch_text(EvaluationSettings(**section), into=tmp_path, characters=None, hub=hub.seen(retry=RETRY))
    with pytest.raises(BadText, match="neither a file nor"):
        fetch_text(EvaluationSettings(dataset="wikitext"), into=tmp_path, characters=None, hub=hub.seen())


@pytest.mark.slow
def test_a_gated_dataset_says_where_to_accept_its_terms(hub: Hub, tmp_path: Path):
    add_wikitext(hub, gated="auto")
    with pytest.raises(BadText, match=f"terms at {hub.endpoint}/datasets/Salesforce/wikitext"):
        fetch_text(EvaluationSettings(), into=tmp_path, characters=None, hub=hub.seen(hub.user("bob"), retry=RETRY))


@pytest.mark.slow
def test_a_passing_fault_while_streaming_is_waited_out(hub: Hub, tmp_path: Path):
    add_wikitext(hub)
    hub.fail("GET /api/datasets/.*/tree/", times=1, status=500)
    text = fetch_text(EvaluationSettings(), into=tmp_path, characters=None, hub=hub.seen(retry=RETRY))
    assert rows(text) == ROWS


def test_a_hub_that_is_down_is_not_a_bad_text(hub: Hub, tmp_path: Path):
    add_wikitext(hub)
    hub.fail("GET /api/datasets", times=None, status=503)
    with pytest.raises(HubFailed):
        fetch_text(EvaluationSettings(), into=tmp_path, characters=None, hub=hub.seen(retry=RETRY))


# --- local ------------------------------------------------------------------------------------------------


def local(path: Path, **options) -> CalibrationSettings:
    return CalibrationSettings(dataset=str(path), **options)


def test_local_files_of_every_kind_give_their_rows(tmp_path: Path):
    (tmp_path / "a.txt").write_text("Grüße\n\nzwei")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "n": 1}\n')
    (tmp_path / "c.parquet").write_bytes(parquet(["one", "", "two"], column="body"))
    got = {
        name: fetch_text(local(tmp_path / name, column=column), into=tmp_path / "in", characters=None, hub=Seen())
        for name, column in (("a.txt", "text"), ("b.jsonl", "text"), ("c.parquet", "body"))
    }
    assert rows(got["a.txt"]) == ["Grüße\n\nzwei"]
    assert rows(got["b.jsonl"]) == ["one", "two"]
    assert rows(got["c.parquet"]) == ["one", "", "two"]
    assert (got["a.txt"].name, got["a.txt"].revision) == ("a.txt", None)
    assert rows(fetch_text(local(tmp_path / "b.jsonl"), into=tmp_path / "in", characters=2, hub=Seen())) == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b" \n ", "holds no text"),
        ("a.txt", b"\xff\xfe\x00", "UTF-8"),
        ("a.jsonl", b"", "holds no text"),
        ("a.jsonl", b'{"text": "x"}\n{"text":', "line 2, is no JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "no text under 'text'.*body"),
        ("a.jsonl", b"[1]\n", "no text under"),
        ("a.jsonl", b"[" * 100_000, "line 1"),
        ("a.parquet", b"PAR1 no parquet", "cannot be read"),
        ("a.parquet", parquet(["x"], column="body"), "no column 'text'.*body"),
        ("a.parquet", parquet([1, 2]), "int64"),
        ("a.csv", b"text\nx", "no text that hubbot reads"),
    ],
)
def test_files_that_hold_no_text_are_refused_with_the_place(tmp_path: Path, name: str, content: bytes, words: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadText, match=words):
        fetch_text(local(tmp_path / name), into=tmp_path / "in", characters=None, hub=Seen())


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path: Path):
    with pytest.raises(BadText, match="does not exist"):
        fetch_text(
            local(tmp_path / "a.jsonl"), into=tmp_path / "in", characters=None, hub=Seen(endpoint="http://127.0.0.1:9")
        )


CHATS = [
    [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}],
    [{"role": "user", "content": "More, please."}, {"role": "assistant", "content": "There."}],
]


@pytest.mark.slow
def test_conversations_of_a_chat_model_come_from_the_default_dataset_as_far_as_they_are_needed(
    hub: Hub, tmp_path: Path
):
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: test_sft, path: data/test_sft-*}\n---\n"
    files: dict[str, str | bytes | Path] = {"README.md": card, "data/test_sft-0.parquet": parquet(CHATS, "messages")}
    sha = hub.dataset("HuggingFaceH4/ultrachat_200k", files)
    section = Settings().spoken
    assert section is not None
    text = fetch_text(section, into=tmp_path, characters=4, hub=hub.seen(retry=RETRY))
    assert (text.name, text.revision) == ("HuggingFaceH4/ultrachat_200k:test_sft", sha)
    assert [json.loads(line) for line in text.path.read_text().splitlines()] == [{"messages": CHATS[0]}]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_conversations_of_a_file_are_taken_and_what_is_none_is_named(tmp_path: Path, hub: Hub, suffix: str):
    def fetched(rows: list) -> Text:
        path = tmp_path / f"chats{suffix}"
        lines = "".join(json.dumps({"messages": row}) + "\n" for row in rows).encode()
        path.write_bytes(lines if suffix == ".jsonl" else parquet(rows, "messages"))
        section = ConversationSettings(dataset=str(path))
        return fetch_text(section, into=tmp_path, characters=None, hub=hub.seen(retry=RETRY))

    told = [{**message, "thought": "none"} for message in CHATS[1]]
    kept = fetched([CHATS[0], told])
    assert [json.loads(line)["messages"] for line in kept.path.read_text().splitlines()] == CHATS
    with pytest.raises(BadText, match="messages"):
        fetched([[{"role": "user"}]])
    with pytest.raises(BadText, match="messages"):
        fetched(["Hello?"])


def test_a_plain_text_holds_no_conversations(tmp_path: Path, hub: Hub):
    (tmp_path / "chat.txt").write_text("Hello?")
    section = ConversationSettings(dataset=str(tmp_path / "chat.txt"))
    with pytest.raises(BadText, match="no conversations"):
        fetch_text(section, into=tmp_path, characters=None, hub=hub.seen(retry=RETRY))
