"""Fetching models: pinned, complete, verified, resumed, and nothing that is not needed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hubbot.bot.stop import Stopped, on_signals
from hubbot.errors import (
    BudgetExceeded,
    HubbotError,
    HubFailed,
    SourceNotFound,
    SourceRefused,
    TokenRefused,
    UnsafeSource,
)
from hubbot.hub.client import Hub as Seen
from hubbot.hub.read import download
from hubbot.hub.read.download import Mismatch
from hubbot.hub.read.local import local_source
from hubbot.hub.read.source import fetch, fetch_headers, resolve
from hubbot.hub.retry import Retry
from hubbot.model.safetensors import read_header
from tests.hub import Hub
from tests.hub.models import NEEDED, sharded, weights


class Sleeper:
    """A clock that only remembers how long it was told to wait."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def sleeper() -> Sleeper:
    return Sleeper()


@pytest.fixture
def retry(sleeper: Sleeper) -> Retry:
    return Retry(sleep=sleeper, jitter=lambda: 0.5)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_fetch_brings_what_is_needed_and_leaves_the_rest(hub: Hub, tmp_path: Path, retry: Retry):
    sha = hub.model("ada/tiny", sharded())
    source = fetch(
        "ada/tiny",
        hub.seen(retry=retry),
        into=tmp_path / "in",
    )
    assert files_in(tmp_path / "in") == NEEDED == sorted(source.files)
    for path, digest in source.files.items():
        assert hashlib.sha256((tmp_path / "in" / path).read_bytes()).hexdigest() == digest
    assert (source.repo, source.revision, source.license) == ("ada/tiny", sha, "apache-2.0")
    assert (source.architecture, source.language, source.pipeline_tag) == (
        "LlamaForCausalLM",
        ("en",),
        "text-generation",
    )
    assert hub.journal.count("consolidated|onnx|evil|pytorch_model") == 0


def test_a_branch_is_pinned_to_its_commit_before_anything_is_read(hub: Hub, tmp_path: Path, retry: Retry):
    first = hub.model("ada/tiny", sharded())
    # somebody commits between the look and the download
    hub.fail("GET /ada/tiny/resolve", do=lambda: hub.commit("ada/tiny", {"config.json": '{"new": 1}'}))
    source = fetch(
        "ada/tiny",
        hub.seen(retry=retry),
        into=tmp_path,
    )
    assert source.revision == first
    assert "new" not in (tmp_path / "config.json").read_text()
    assert all(f"/resolve/{first}/" in request.path for request in hub.journal.find("/resolve/"))


def test_a_revision_may_be_a_branch_with_a_slash_a_tag_or_a_sha(hub: Hub, retry: Retry):
    sha = hub.model("ada/tiny", sharded())
    hub.commit("ada/tiny", {"config.json": "{}"})
    hub.repo("ada/tiny").refs["refs/heads/old/one"] = sha
    for revision in ("old/one", sha, "refs/heads/old/one"):
        assert (
            resolve(
                "ada/tiny",
                hub.seen(retry=retry),
                revision=revision,
            ).revision
            == sha
        )
    with pytest.raises(SourceNotFound, match="v9"):
        resolve(
            "ada/tiny",
            hub.seen(retry=retry),
            revision="v9",
        )


def test_resolving_says_how_much_there_is_to_fetch_without_fetching_it(hub: Hub, retry: Retry):
    contents = sharded()
    hub.model("ada/tiny", contents)
    found = resolve(
        "ada/tiny",
        hub.seen(retry=retry),
    )
    assert found.bytes == sum(len(contents[name]) for name in NEEDED)
    assert [r.path.rsplit("/", 1)[1] for r in hub.journal.find("/resolve/")] == ["model.safetensors.index.json"]


@pytest.mark.parametrize(
    "fault", [{"cut": "download", "after": 9000}, {"truncate": 5000}, {"cut": "before"}, {"status": 503}]
)
def test_a_broken_download_goes_on_and_ends_whole(hub: Hub, tmp_path: Path, retry: Retry, fault: dict):
    hub.model("ada/tiny", sharded())
    hub.fail("GET /storage/", times=3, **fault)
    source = fetch(
        "ada/tiny",
        hub.seen(retry=retry),
        into=tmp_path,
    )
    assert (tmp_path / "model-00001-of-00002.safetensors").read_bytes() == weights(1)
    assert sorted(source.files) == NEEDED


def test_a_cut_download_is_continued_not_begun_again(hub: Hub, tmp_path: Path, retry: Retry):
    hub.model("ada/tiny", {"config.json": "{}", "model.safetensors": weights(1, rows=4096)})
    hub.fail("GET /storage/", cut="download", after=700_000)
    fetch(
        "ada/tiny",
        hub.seen(retry=retry),
        into=tmp_path,
    )
    first, second = hub.journal.find("GET /storage/")
    assert first.range is None
    assert int(second.range.removeprefix("bytes=").rstrip("-")) >= 600_000


def test_a_killed_fetch_goes_on_in_the_next_run(hub: Hub, tmp_path: Path):
    hub.model("ada/tiny", {"config.json": "{}", "model.safetensors": weights(1, rows=4096)})
    hub.fail("GET /storage/", cut="download", after=700_000)
    with pytest.raises(HubFailed):
        fetch(
            "ada/tiny",
            hub.seen(retry=Retry(attempts=1)),
            into=tmp_path,
        )
    assert not (tmp_path / "model.safetensors").exists(), "nothing half-made bears the real name"
    hub.journal.clear()
    fetch("ada/tiny", hub.seen(), into=tmp_path)
    assert int(hub.journal.find("GET /storage/")[0].range.removeprefix("bytes=").rstrip("-")) >= 600_000
    assert (tmp_path / "model.safetensors").read_bytes() == weights(1, rows=4096)
    hub.journal.clear()
    fetch("ada/tiny", hub.seen(), into=tmp_path)
    assert hub.journal.count("/resolve/|/storage/") == 0, "a finished file is not fetched again"


def test_a_corrupt_file_is_fetched_once_more_and_then_right(hub: Hub, tmp_path: Path, retry: Retry):
    hub.model("ada/tiny", sharded())
    hub.fail("GET /storage/", corrupt=5000)
    hub.fail("GET /api/resolve-cache/.*/config.json", corrupt=3)
    fetch(
        "ada/tiny",
        hub.seen(retry=retry),
        into=tmp_path,
    )
    assert (tmp_path / "model-00001-of-00002.safetensors").read_bytes() == weights(1)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("what", ["GET /storage/", "GET /api/resolve-cache/.*/config.json"])
def test_a_file_that_stays_corrupt_is_refused_and_not_kept(hub: Hub, tmp_path: Path, retry: Retry, what: str):
    hub.model("ada/tiny", {"config.json": "{}", "model.safetensors": weights(1)})
    hub.fail(what, corrupt=1, times=None)
    with pytest.raises(SourceRefused, match="arrived twice with other content"):
        fetch(
            "ada/tiny",
            hub.seen(retry=retry),
            into=tmp_path,
        )
    assert hub.journal.count(what) == 2
    assert not any(
        path.name in ("model.safetensors", "config.json") and "storage" in what for path in tmp_path.glob("*.s*")
    )


@pytest.mark.parametrize("times", [1, 2])
def test_a_download_that_goes_on_past_its_end_is_fetched_once_more_and_then_refused(
    hub: Hub, tmp_path: Path, retry: Retry, monkeypatch, times: int
):
    hub.model("ada/tiny", sharded())
    genuine, left = download._stream, [times]

    @contextmanager
    def stream(repo, path, headers):
        with genuine(repo, path, headers) as answer:
            more = [b"more"] if path == "model-00001-of-00002.safetensors" and left[0] else []
            left[0] -= len(more)
            pieces = itertools.chain(answer.iter_raw(), more)
            yield SimpleNamespace(status_code=answer.status_code, iter_raw=lambda: pieces)

    monkeypatch.setattr(download, "_stream", stream)
    with contextlib.nullcontext() if times == 1 else pytest.raises(Mismatch, match="arrived twice"):
        fetch(
            "ada/tiny",
            hub.seen(retry=retry),
            into=tmp_path / "in",
        )
    assert hub.journal.count("GET /ada/tiny/resolve/.*/model-00001") == 2


def test_a_signal_ends_a_fetch_at_once_and_the_next_goes_on_from_there(hub: Hub, tmp_path: Path, retry: Retry):
    hub.model("ada/tiny", {**sharded(), "model-00001-of-00002.safetensors": weights(1, rows=16_384)})  # 4 MiB
    hub.fail("GET /storage", times=None, drip=0.2)  # 13 s if somebody waits for it
    part = tmp_path / "in" / ".unfinished" / "model-00001-of-00002.safetensors"

    def ask() -> None:
        while not part.exists() or part.stat().st_size == 0:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    with on_signals() as stop, pytest.raises(Stopped), stop.breakable():
        fetch(
            "ada/tiny",
            hub.seen(retry=retry),
            into=tmp_path / "in",
        )
    assert 0 < part.stat().st_size < 2**22, "it waited for the whole download"
    hub.heal()
    for thread in threading.enumerate():
        if thread.name == "fetch":
            thread.join()
    hub.journal.clear()
    fetch(
        "ada/tiny",
        hub.seen(retry=retry),
        into=tmp_path / "in",
    )
    assert any(request.range for request in hub.journal.find("GET /storage"))


def test_an_altered_file_on_the_disk_is_fetched_again(hub: Hub, tmp_path: Path, retry: Retry):
    hub.model("ada/tiny", {"config.json": "{}", "model.safetensors": weights(1)})
    fetch(
        "ada/tiny",
        hub.seen(retry=retry),
        into=tmp_path,
    )
    damaged = bytearray(weights(1))
    damaged[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(damaged)
    fetch(
        "ada/tiny",
        hub.seen(retry=retry),
        into=tmp_path,
    )
    assert (tmp_path / "model.safetensors").read_bytes() == weights(1)


def test_a_newer_revision_leaves_no_file_of_the_older_behind(hub: Hub, tmp_path: Path, retry: Retry):
    hub.model("ada/tiny", sharded())
    fetch(
        "ada/tiny",
        hub.seen(retry=retry),
        into=tmp_path,
    )
    hub.commit("ada/tiny", {"chat_template.jinja": None, "config.json": "{}"})
    fetch(
        "ada/tiny",
        hub.seen(retry=retry),
        into=tmp_path,
    )
    assert files_in(tmp_path) == [name for name in NEEDED if name != "chat_template.jinja"]


def test_waits_are_as_long_as_the_hub_asks_and_bounded(hub: Hub, tmp_path: Path, retry: Retry, sleeper: Sleeper):
    hub.model("ada/tiny", {"config.json": "{}", "model.safetensors": weights(1)})
    hub.fail("GET /ada/tiny/resolve/.*model.safetensors", status=429, retry_after=40)
    hub.fail("GET /ada/tiny/resolve/.*config.json", status=429, ratelimit=55)
    fetch(
        "ada/tiny",
        hub.seen(retry=retry),
        into=tmp_path,
    )
    assert sorted(sleeper.slept) == [41.5, 56.5]
    hub.fail("GET /api/models/ada/tiny", status=429, retry_after=100_000, times=None)
    with pytest.raises(HubFailed, match="100000 s"):
        fetch(
            "ada/tiny",
            hub.seen(retry=retry),
            into=tmp_path,
        )


def test_a_hub_that_stays_down_is_given_up(hub: Hub, tmp_path: Path, retry: Retry, sleeper: Sleeper):
    hub.model("ada/tiny", {"config.json": "{}", "model.safetensors": weights(1)})
    hub.fail("GET /storage/", status=500, times=None)
    with pytest.raises(HubFailed, match="500"):
        fetch(
            "ada/tiny",
            hub.seen(retry=retry),
            into=tmp_path,
        )
    assert hub.journal.count("GET /storage/") == retry.attempts


# --- who may --------------------------------------------------------------------------------------------


def test_private_repos_come_with_a_token_and_are_missing_without(hub: Hub, tmp_path: Path, retry: Retry):
    token = hub.user("ada")
    hub.model("ada/secret", {"config.json": "{}", "model.safetensors": weights(1)}, private=True)
    fetch(
        "ada/secret",
        hub.seen(token, retry=retry),
        into=tmp_path,
    )
    for other in (None, hub.user("bob")):
        with pytest.raises(SourceNotFound, match="no ada/secret, or hides it"):
            fetch(
                "ada/secret",
                hub.seen(other, retry=retry),
                into=tmp_path / "x",
            )


def test_a_gated_repo_says_where_to_accept_its_terms(hub: Hub, tmp_path: Path, retry: Retry):
    hub.model("ada/gated", {"config.json": "{}", "model.safetensors": weights(1)}, gated="auto")
    for token in (None, hub.user("bob")):
        with pytest.raises(SourceNotFound, match=f"gated. Accept its terms at {hub.endpoint}/ada/gated"):
            fetch(
                "ada/gated",
                hub.seen(token, retry=retry),
                into=tmp_path,
            )
    hub.repo("ada/gated").access["bob"] = "accepted"
    source = fetch(
        "ada/gated",
        hub.seen(hub.user("bob"), retry=retry),
        into=tmp_path,
    )
    assert source.gated


def test_a_wrong_token_is_named_as_the_reason_but_never_shown(hub: Hub, tmp_path: Path, retry: Retry):
    hub.model("ada/tiny", {"config.json": "{}", "model.safetensors": weights(1)})
    secret = "hf_wrongwrongwrongwrong"
    with pytest.raises(TokenRefused) as error:
        fetch(
            "ada/tiny",
            hub.seen(secret, retry=retry),
            into=tmp_path,
        )
    assert secret not in str(error.value)


def test_a_token_revoked_half_way_ends_the_fetch_with_the_reason(hub: Hub, tmp_path: Path, retry: Retry):
    token = hub.user("ada")
    hub.model("ada/tiny", sharded(), private=True)
    hub.revoke(token, after=6)
    with pytest.raises(TokenRefused, match="revoked"):
        fetch(
            "ada/tiny",
            hub.seen(token, retry=retry),
            into=tmp_path,
        )


def test_a_repo_deleted_half_way_ends_the_fetch_with_the_reason(hub: Hub, tmp_path: Path, retry: Retry):
    hub.model("ada/tiny", sharded())
    hub.fail("GET /ada/tiny/resolve/.*00001", do=lambda: hub.delete_repo("ada/tiny"))
    with pytest.raises(SourceNotFound):
        fetch(
            "ada/tiny",
            hub.seen(hub.user("bob"), retry=retry),
            into=tmp_path,
        )


def test_no_token_of_the_environment_is_ever_sent(hub: Hub, tmp_path: Path, retry: Retry, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.user("ada"))
    hub.model("ada/tiny", {"config.json": "{}", "model.safetensors": weights(1)})
    fetch(
        "ada/tiny",
        hub.seen(retry=retry),
        into=tmp_path,
    )
    assert not any(request.with_token for request in hub.journal.requests)


# --- bad repos ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contents", "error", "words"),
    [
        ({"pytorch_model.bin": b"\0"}, SourceRefused, "Only pickle files are here"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": weights(1)}, SourceRefused, "adapter"),
        ({"x.gguf": b"GGUF\0"}, SourceRefused, "GGUF"),
        ({"README.md": "hello"}, SourceRefused, "No weights are here"),
        ({"other.safetensors": weights(1)}, SourceRefused, "under another name"),
        (
            {"model.safetensors.index.json": '{"weight_map": {"a": "../../etc/passwd"}}'},
            UnsafeSource,
            "plain file name",
        ),
        ({"model.safetensors.index.json": '{"weight_map": {"a": "/etc/passwd"}}'}, UnsafeSource, "plain file name"),
        ({"model.safetensors.index.json": '{"weight_map": {"a": "b.safetensors"}}'}, SourceRefused, "does not hold"),
        ({"model.safetensors.index.json": '{"weight_map": []}'}, UnsafeSource, "object"),
        (
            {
                "model.safetensors.index.json": json.dumps(
                    {"weight_map": {f"t{n}": f"{n}.safetensors" for n in range(2_001)}}
                )
            },
            UnsafeSource,
            "names 2,001 files of weights",
        ),
        ({"model.safetensors.index.json": "{" * 1000}, UnsafeSource, "JSON"),
    ],
)
def test_a_repo_without_a_sound_model_is_refused_before_the_download(
    hub: Hub, tmp_path: Path, retry: Retry, contents: dict, error: type[HubbotError], words: str
):
    hub.model("ada/bad", {"config.json": "{}", **contents})
    with pytest.raises(error, match=words):
        fetch(
            "ada/bad",
            hub.seen(retry=retry),
            into=tmp_path / "in",
        )
    assert not (tmp_path / "in").exists()


def test_pickles_are_fetched_on_request_alone(hub: Hub, tmp_path: Path, retry: Retry):
    hub.model("ada/old", {"config.json": "{}", "pytorch_model.bin": b"\x80\0", "evil.py": "x"})
    source = fetch("ada/old", hub.seen(retry=retry), into=tmp_path, allow_pickle=True)
    assert sorted(source.files) == ["config.json", "pytorch_model.bin"]


def test_paths_that_lead_out_of_the_folder_are_refused(hub: Hub, tmp_path: Path, retry: Retry):
    hub.model("ada/bad", {"config.json": "{}", "model.safetensors": weights(1)})
    repo = hub.repo("ada/bad")
    commit = repo.commit_at("main")
    cast("dict[str, Any]", commit.files)["../../escape.json"] = commit.files["config.json"]
    with pytest.raises(UnsafeSource, match="no plain path"):
        fetch(
            "ada/bad",
            hub.seen(retry=retry),
            into=tmp_path / "in",
        )
    assert files_in(tmp_path) == []


def test_names_that_are_no_ids_are_refused_without_a_request(hub: Hub, tmp_path: Path):
    for name in ("tiny", "a/b/c", "../x/y", "ada/ti ny", "ada/" + "x" * 200, ""):
        with pytest.raises((SourceNotFound, SourceRefused)):
            fetch(name, hub.seen(), into=tmp_path)
    assert hub.journal.requests == []


def test_a_model_larger_than_the_disk_is_refused_before_the_download(
    hub: Hub, tmp_path: Path, retry: Retry, monkeypatch
):
    hub.model("ada/tiny", {"config.json": "{}", "model.safetensors": weights(1)})
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("hubbot.hub.read.source.shutil.disk_usage", lambda _: usage)
    with pytest.raises(BudgetExceeded, match="Make room"):
        fetch(
            "ada/tiny",
            hub.seen(retry=retry),
            into=tmp_path,
        )
    assert hub.journal.count("/resolve/") == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_half_way_is_said_and_gone_on_with(hub: Hub, small_disk: Path, retry: Retry, monkeypatch):
    contents = {f"model-0000{i}-of-00002.safetensors": weights(i, rows=2600) for i in (1, 2)}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    hub.model("ada/tiny", {"config.json": "{}", "model.safetensors.index.json": json.dumps(index), **contents})
    usage = type("Usage", (), {"free": 10**12})  # somebody else takes the room after we have looked
    monkeypatch.setattr("hubbot.hub.read.source.shutil.disk_usage", lambda _: usage)
    with pytest.raises(BudgetExceeded, match=r"disk .* is full"):
        fetch(
            "ada/tiny",
            hub.seen(retry=retry),
            into=small_disk,
        )
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    fetch(
        "ada/tiny",
        hub.seen(retry=retry),
        into=small_disk,
    )
    assert (small_disk / "model-00002-of-00002.safetensors").read_bytes() == weights(2, rows=2600)


# --- headers --------------------------------------------------------------------------------------------


def test_a_header_snapshot_has_every_header_and_takes_no_room(hub: Hub, tmp_path: Path, retry: Retry):
    contents = {**sharded(), "model-00001-of-00002.safetensors": weights(1, rows=20_000)}
    hub.model("ada/tiny", contents)
    source = fetch_headers(
        "ada/tiny",
        hub.seen(retry=retry),
        into=tmp_path / "heads",
    )
    whole = fetch(
        "ada/tiny",
        hub.seen(retry=retry),
        into=tmp_path / "whole",
    )
    assert source.files == whole.files
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        sparse = tmp_path / "heads" / name
        assert read_header(sparse) == read_header(tmp_path / "whole" / name)
        assert sparse.stat().st_size == len(contents[name])
    assert (tmp_path / "heads" / "model-00001-of-00002.safetensors").stat().st_blocks * 512 < 100_000
    assert (tmp_path / "heads" / "config.json").read_bytes() == (tmp_path / "whole" / "config.json").read_bytes()


def test_a_long_header_is_read_whole(hub: Hub, tmp_path: Path, retry: Retry):
    import numpy as np
    from safetensors.numpy import save

    many = save({f"model.layers.{i}.some.rather.long.name.weight": np.zeros(4, np.float32) for i in range(2000)})
    hub.model("ada/many", {"config.json": "{}", "model.safetensors": many})
    fetch_headers(
        "ada/many",
        hub.seen(retry=retry),
        into=tmp_path,
    )
    assert len(read_header(tmp_path / "model.safetensors")) == 2000


@pytest.mark.parametrize("length", [100 * 10**9, 10**8 + 1, 2**63, 10_000])
def test_a_header_longer_than_allowed_or_than_its_file_is_refused(hub: Hub, tmp_path: Path, retry: Retry, length: int):
    hub.model("ada/bad", {"config.json": "{}", "model.safetensors": struct.pack("<Q", length) + b"{}" + bytes(100)})
    with pytest.raises(UnsafeSource, match="claims a header"):
        fetch_headers(
            "ada/bad",
            hub.seen(retry=retry),
            into=tmp_path,
        )
    assert not (tmp_path / "model.safetensors").exists()


# --- local folders --------------------------------------------------------------------------------------


def write(folder: Path, contents: dict[str, bytes | str]) -> Path:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def test_a_local_folder_is_used_where_it_lies(tmp_path: Path):
    folder = write(tmp_path / "model", {"config.json": "{}", "model.safetensors": weights(1)})
    source = fetch(str(folder), Seen(), into=tmp_path / "in")
    assert (source.folder, source.repo, source.revision) == (str(folder), None, None)
    assert source.files["model.safetensors"] == hashlib.sha256(weights(1)).hexdigest()
    assert not (tmp_path / "in").exists()


def test_more_beside_the_weights_than_any_model_has_is_refused_unread(hub: Hub, tmp_path: Path, retry: Retry):
    folder = write(tmp_path / "model", {"config.json": "{}", "model.safetensors": weights(1)})
    with (folder / "LICENSE").open("wb") as stream:
        stream.truncate(200 * 2**20)
    with pytest.raises(UnsafeSource, match="at most 8,388,608 are read of a licence"):
        fetch(str(folder), Seen(), into=tmp_path / "in")
    many = {f"LICENSE-{number}": b"mine" for number in range(300)}
    hub.model("ada/many", {"config.json": b"{}", "model.safetensors": weights(1), **many})
    with pytest.raises(UnsafeSource, match="301 files lie beside the weights"):
        fetch_headers("ada/many", hub.seen(retry=retry), into=tmp_path / "plan")
    assert not [request for request in hub.journal.requests if "/resolve/" in request.path]


def test_a_local_file_that_changed_since_it_was_read_is_hashed_again(tmp_path: Path):
    weights = tmp_path / "model.safetensors"
    digests = set()
    for changed, text in enumerate((b"one", b"two", b"two")):
        weights.write_bytes(text)
        os.utime(weights, ns=(changed, changed))
        found = local_source(tmp_path, tmp_path / "gathered", None).files
        assert found == {"model.safetensors": hashlib.sha256(text).hexdigest()}
        digests |= set(found.values())
    assert len(digests) == 2


def test_a_ring_of_links_in_a_local_folder_is_told(tmp_path: Path):
    folder = write(tmp_path / "model", {"config.json": "{}", "model.safetensors": weights(1)})
    (folder / "one.json").symlink_to("two.json")
    (folder / "two.json").symlink_to("one.json")
    with pytest.raises(SourceRefused, match="leads nowhere or round in a ring"):
        fetch(str(folder), Seen(), into=tmp_path / "in")


def test_links_out_of_a_local_folder_are_refused(tmp_path: Path):
    folder = write(tmp_path / "model", {"config.json": "{}"})
    write(tmp_path, {"secret.safetensors": weights(1)})
    (folder / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(UnsafeSource, match="symbolic link"):
        fetch(str(folder), Seen(), into=tmp_path / "in")


def test_what_converter_and_readers_read_in_folders_below_comes_along_by_every_way(hub: Hub, tmp_path: Path):
    below = {"1_Pooling/config.json": "{}", "additional_chat_templates/rag.jinja": "{{ 1 }}"}
    hub.model("ada/tiny", sharded() | below | {"modules.json": "[]", "old/tokenizer.json": "{}"})
    from huggingface_hub import snapshot_download

    fetched = fetch("ada/tiny", hub.seen(), into=tmp_path / "in")
    copied = fetch(str(tmp_path / "in"), hub.seen(), into=tmp_path / "unused")
    snapshot = snapshot_download("ada/tiny", endpoint=hub.endpoint, cache_dir=tmp_path / "cache", token=False)
    gathered = fetch(snapshot, hub.seen(), into=tmp_path / "gathered")
    for source in (fetched, copied, gathered):
        assert {"modules.json", *below} <= source.files.keys()
        assert "old/tokenizer.json" not in source.files
        assert all((Path(source.folder) / name).is_file() for name in below)
    assert not (Path(gathered.folder) / "old").exists()


def test_a_snapshot_of_the_clients_cache_is_gathered(hub: Hub, tmp_path: Path):
    from huggingface_hub import snapshot_download

    hub.model("ada/tiny", sharded())
    snapshot = snapshot_download("ada/tiny", endpoint=hub.endpoint, cache_dir=tmp_path / "cache", token=False)
    source = fetch(snapshot, Seen(), into=tmp_path / "in")
    assert source.name == "tiny"
    assert not any(path.is_symlink() for path in Path(source.folder).iterdir())
    assert (Path(source.folder) / "model-00001-of-00002.safetensors").read_bytes() == weights(1)
    (Path(snapshot) / "tokenizer.json").symlink_to("/etc/passwd")
    with pytest.raises(UnsafeSource, match="leaves the cache"):
        fetch(snapshot, Seen(), into=tmp_path / "in2")


def test_a_missing_folder_and_a_revision_of_a_folder_are_refused(tmp_path: Path):
    with pytest.raises(SourceNotFound, match="no folder"):
        fetch("./nothing/here", Seen(), into=tmp_path)
    with pytest.raises(SourceRefused, match="no revision"):
        fetch(str(tmp_path), Seen(), revision="main", into=tmp_path / "in")


def test_a_folder_whose_name_leaves_no_room_for_the_names_of_files_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / ("模型" * 32)
    folder.mkdir()
    with pytest.raises(SourceRefused, match=r"name has 192 bytes in UTF-8; at most 190 .* Rename the folder"):
        local_source(folder, tmp_path / "gathered", None)
    assert local_source(folder.rename(tmp_path / ("模型" * 31)), tmp_path / "gathered", None).files == {}
