"""Publishing under random faults and kills: every commit is a whole release, and there is one of each."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import pytest

from hubbot.errors import HubbotError
from hubbot.hub.publish.publication import publish
from hubbot.hub.publish.repo_release import RepoRelease
from hubbot.hub.retry import Retry
from tests.hub import Hub
from tests.hub.models import gguf_release, gptq_release
from tests.tiers import suite

ROOT = Path(__file__).parents[2]
ROUTES = ["/commit/", "PUT /storage", "info/lfs", "preupload", "/refs", "/tree/", "/discussions", "/branch/", "repos/create",
          "resolve", "validate-yaml", "/commits/", "."]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


def order_faults(hub: Hub, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 6)):
        fault: dict[str, Any] = chance.choice(
            [
                {"status": chance.choice([500, 502, 503, 504])},
                {"status": 429, "retry_after": chance.choice([None, 0, 7])},
                {"cut": "before"},
                {"cut": "answer"},
                {"cut": "upload", "after": chance.randint(1, 20_000)},
                {"slow": 0.02},
            ]
        )
        hub.fail(chance.choice(ROUTES), skip=chance.randint(0, 12), times=chance.randint(1, 4), **fault)


def contents(hub: Hub, release: RepoRelease) -> list[dict[str, bytes]]:
    return [{path: file.read_bytes() for path, file in files.items()} for files in release.branches.values()]


def assert_no_half_release(hub: Hub, repo_id: str, releases: list[RepoRelease]) -> None:
    """Every commit that was ever made is the empty beginning or one revision of one release, byte for byte."""
    repo = hub.find("model", repo_id)
    if repo is None:
        return
    whole = [revision for release in releases for revision in contents(hub, release)]
    for commit in repo.commits.values():
        found = {p: hub.blobs.read(e.sha256) for p, e in commit.files.items() if p != ".gitattributes"}
        assert not found or found in whole, f"half a release: {commit.title}: {sorted(found)}"
    waiting = [pull for pull in hub.pulls(repo_id) if pull.status in ("open", "draft")]
    assert len(waiting) <= 1, "a second pull request"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["main", "pr"])
@pytest.mark.parametrize("family", suite(["gguf", "gptq"], first=1))
def test_no_fault_ever_leaves_half_a_release_or_makes_two(
    hub: Hub, tmp_path: Path, mode: Literal["pr", "main"], family: str
):
    make = gguf_release if family == "gguf" else gptq_release
    names = ("Q8_0", "Q4_K_M") if family == "gguf" else ("gptq-4bit-128g", "gptq-8bit-128g")
    failures, said = 0, list[str]()
    for seed in range(8):
        chance = random.Random(f"{mode} {family} {seed}")
        repo = f"ada/tiny-{seed}"
        releases = [make(tmp_path / f"{seed}-{i}", *names, repo=repo, seed=i) for i in range(2)]
        head = "refs/pr/1" if mode == "pr" else "main"
        for release in releases:
            for _ in range(4):
                order_faults(hub, chance)
                token = hub.user("ada")
                hub.revoke(token, after=chance.randint(3, 60))
                retry = Retry(attempts=chance.randint(1, 4), sleep=lambda _: None)
                try:
                    publish(release, hub.seen(token, retry=retry), mode=mode)
                except HubbotError as error:
                    failures += 1
                    said.append(str(error))
                assert_no_half_release(hub, repo, releases)
            hub.heal()
            publish(release, hub.seen(hub.user("ada")), mode=mode)
            assert_no_half_release(hub, repo, releases)
            found = {p: hub.read(repo, p, head) for p in hub.files(repo, head) if p != ".gitattributes"}
            assert found == contents(hub, release)[0]
        assert len(hub.pulls(repo)) == (mode == "pr")
        revisions = len(releases[0].branches) if mode == "pr" else 1
        assert len(hub.history(repo, head)) == 1 + 2 * revisions, "one commit for each revision of each release"
    assert failures >= 10, "the faults were worth surviving"
    assert "hf_" not in " ".join(said)


PROGRAM = """
import sys
from pathlib import Path
from hubbot.hub.client import Hub
from hubbot.hub.publish.publication import publish
from tests.hub.models import gptq_release
release = gptq_release(Path(sys.argv[3]), "gptq-4bit-128g", "gptq-8bit-128g")
publish(release, Hub(endpoint=sys.argv[1], token=sys.argv[4]), mode=sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["main", "pr"])
@pytest.mark.parametrize(("cut", "nth"), [("before", 0), ("answer", 0), ("answer", 1)])
def test_a_program_killed_at_a_commit_finishes_when_it_runs_again(
    hub: Hub, tmp_path: Path, mode: Literal["pr", "main"], cut: str, nth: int
):
    token = hub.user("ada")
    command = [sys.executable, "-c", PROGRAM, hub.endpoint, mode, str(tmp_path / "first"), token]
    started = threading.Event()

    def kill() -> None:
        started.wait(60)
        process.kill()
        process.wait()

    ordered = hub.fail("POST .*/commit/", skip=nth, cut=cut, do=kill)
    process = subprocess.Popen(command, cwd=ROOT)
    started.set()
    assert process.wait(120) == -9
    assert ordered.hit == 1
    hub.heal()
    release = gptq_release(tmp_path / "again", "gptq-4bit-128g", "gptq-8bit-128g")
    publish(release, hub.seen(token), mode=mode)
    first = gptq_release(tmp_path / "x", "gptq-4bit-128g", "gptq-8bit-128g")
    revisions = ["main", "gptq-8bit-128g"] if mode == "main" else ["refs/pr/1"]
    for revision in revisions:
        assert set(hub.files(release.repo_id, revision)) >= first.branches["main"].keys()
    lengths = [len(hub.history(release.repo_id, revision)) for revision in revisions]
    assert lengths == ([2, 2] if mode == "main" else [3])
    assert len(hub.pulls(release.repo_id)) == (mode == "pr")
