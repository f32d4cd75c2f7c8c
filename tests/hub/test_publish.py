"""Publishing: whole or not at all, once, whatever goes wrong on the way."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Literal

import pytest

from hubbot.errors import BadSettings, HubFailed, PublishConflict, TokenRefused
from hubbot.hub.client import Hub as Seen
from hubbot.hub.publish.publication import publish
from hubbot.hub.publish.repo_release import Receipt, RepoRelease
from hubbot.hub.rate_limit import RateLimit
from hubbot.hub.retry import Retry
from tests.hub import Hub
from tests.hub.models import CARD, gguf_release, gptq_release


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


class Publisher:
    """publish() with a user's token and without real waiting."""

    def __init__(self, hub: Hub, token: str) -> None:
        self.hub, self.token, self.slept = hub, token, list[float]()

    def __call__(
        self,
        release: RepoRelease,
        mode: Literal["pr", "main"] = "main",
        *,
        token: str | None = None,
        commits: RateLimit | None = None,
        **options,
    ) -> Receipt:
        return publish(release, self.seen(token, commits), mode=mode, **options)

    def seen(self, token: str | None = None, commits: RateLimit | None = None) -> Seen:
        retry = Retry(sleep=self.slept.append, jitter=lambda: 0.5)
        return self.hub.seen(self.token if token is None else token, retry=retry, limit=commits)


@pytest.fixture
def ada(hub: Hub) -> Publisher:
    return Publisher(hub, hub.user("ada"))


def commits(hub: Hub) -> int:
    """Commits that the Hub was asked for."""
    return hub.journal.count("POST /api/models/.*/commit/")


def holds(hub: Hub, release: RepoRelease, branch: str = "main", revision: str | None = None) -> bool:
    """Whether a revision has every file of a branch, byte for byte."""
    found = hub.files(release.repo_id, revision or branch)
    wanted = release.branches[branch]
    return all(
        path in found and hub.read(release.repo_id, path, revision or branch) == file.read_bytes()
        for path, file in wanted.items()
    )


# --- straight on ------------------------------------------------------------------------------------------


def test_a_release_is_one_commit_in_a_new_repo(hub: Hub, ada: Publisher, tmp_path: Path):
    release = gguf_release(tmp_path, "Q4_K_M", "Q8_0")
    receipt = ada(release)
    assert (receipt.status, receipt.created) == ("published", True)
    assert [commit.title for commit in hub.history("ada/tiny-GGUF")] == [release.title, "initial commit"]
    assert holds(hub, release)
    assert receipt.commits == {"main": hub.history("ada/tiny-GGUF")[0].id}
    assert [file.path for file in receipt.files] == sorted(release.branches["main"])
    assert not hub.repo("ada/tiny-GGUF").private


def test_large_files_are_there_before_the_commit_is_asked_for(hub: Hub, ada: Publisher, tmp_path: Path):
    ada(gguf_release(tmp_path, "Q4_K_M", "Q8_0"))
    lines = [request.line for request in hub.journal.requests]
    commit = next(i for i, line in enumerate(lines) if "/commit/" in line)
    assert max(i for i, line in enumerate(lines) if line.startswith("PUT /storage/")) < commit


def test_the_same_release_is_not_published_again(hub: Hub, ada: Publisher, tmp_path: Path):
    ada(gguf_release(tmp_path / "one", "Q4_K_M"))
    again = gguf_release(tmp_path / "two", "Q4_K_M")  # made anew: another record, the same fingerprint
    hub.journal.clear()
    receipt = ada(again)
    assert (receipt.status, receipt.files) == ("unchanged", ())
    assert commits(hub) == 0
    assert hub.journal.count("preupload|PUT|batch") == 0
    assert ada(again, force=True).status == "published"
    assert commits(hub) == 1


def test_nothing_is_hashed_where_nothing_is_to_be_done(hub: Hub, ada: Publisher, tmp_path: Path, monkeypatch):
    release = gptq_release(tmp_path, "gptq-4bit-128g", "gptq-8bit-128g")
    ada(release)
    monkeypatch.setattr(
        "hubbot.hub.publish.publication.hash_files", lambda *_: pytest.fail("gigabytes were read for nothing")
    )
    assert ada(release).status == "unchanged"
    monkeypatch.undo()


def test_a_server_without_xet_storage_gets_plain_uploads(hub: Hub, ada: Publisher, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    release = gguf_release(tmp_path, "Q8_0")
    ada(release)
    assert holds(hub, release)
    assert hub.journal.count("xet-write-token") == 1
    from huggingface_hub import constants

    assert constants.HF_HUB_DISABLE_XET is False, "the library's switch is left as it was"


def test_a_newer_release_takes_away_what_no_longer_belongs_and_nothing_else(hub: Hub, ada: Publisher, tmp_path: Path):
    ada(gguf_release(tmp_path / "one", "Q4_K_M", "Q8_0", "Q2_K"))
    hub.commit("ada/tiny-GGUF", {"notes.md": "mine", "own.gguf": b"GGUF\0own"})
    release = gguf_release(tmp_path / "two", "Q4_K_M", "Q8_0", seed=1)
    ada(release)
    assert sorted(hub.files("ada/tiny-GGUF")) == [
        ".gitattributes",
        "README.md",
        "hubbot.json",
        "notes.md",
        "own.gguf",
        "tiny-Q4_K_M.gguf",
        "tiny-Q8_0.gguf",
    ]
    assert holds(hub, release)
    assert commits(hub) == 2


def test_a_release_in_several_sweeps_keeps_the_files_of_the_sweeps_before(hub: Hub, ada: Publisher, tmp_path: Path):
    whole = gguf_release(tmp_path, "Q4_K_M", "Q8_0")
    ada(whole)
    files = dict(whole.branches["main"])
    del files["tiny-Q8_0.gguf"]  # published and removed from the disk by the sweep before
    later = gguf_release(tmp_path / "later", "Q4_K_M", "Q8_0", version="2.0")
    files["hubbot.json"] = later.branches["main"]["hubbot.json"]
    ada(RepoRelease(repo_id=whole.repo_id, branches={"main": files}, title="Later", family=whole.family))
    assert "tiny-Q8_0.gguf" in hub.files("ada/tiny-GGUF")


def test_every_revision_is_complete_and_main_comes_last(hub: Hub, ada: Publisher, tmp_path: Path):
    release = gptq_release(tmp_path, "gptq-4bit-128g", "gptq-4bit-32g-actorder", "gptq-8bit-128g")
    receipt = ada(release)
    assert sorted(receipt.commits) == ["gptq-4bit-32g-actorder", "gptq-8bit-128g", "main"]
    for branch in release.branches:
        assert holds(hub, release, branch)
        assert len(hub.history("ada/tiny-GPTQ", branch)) == 2
    assert "extra.json" not in hub.files("ada/tiny-GPTQ")
    asked = [request.path.rsplit("/", 1)[1] for request in hub.journal.find("POST .*/commit/")]
    assert asked[-1] == "main"
    assert ada(release).status == "unchanged"


def test_a_private_release_makes_a_private_repo(hub: Hub, ada: Publisher, tmp_path: Path):
    from dataclasses import replace

    ada(replace(gguf_release(tmp_path, "Q8_0"), private=True))
    assert hub.repo("ada/tiny-GGUF").private


# --- refusals -----------------------------------------------------------------------------------------------


def test_a_card_that_the_hub_refuses_stops_everything_before_an_upload(hub: Hub, ada: Publisher, tmp_path: Path):
    release = gguf_release(tmp_path, "Q8_0")
    release.branches["main"]["README.md"].write_text(CARD.replace("apache-2.0", "my-own"))
    with pytest.raises(HubFailed, match="license"):
        ada(release)
    assert hub.find("model", "ada/tiny-GGUF") is None
    assert hub.journal.count("PUT|preupload|create") == 0


def test_a_token_without_rights_is_told_what_to_do(hub: Hub, ada: Publisher, tmp_path: Path):
    hub.model("labs/tiny-GGUF")
    release = gguf_release(tmp_path, "Q8_0", repo="labs/tiny-GGUF")
    for token in (hub.user("bob"), hub.user("ada", scope="read")):
        with pytest.raises(TokenRefused, match="--publish pr"):
            ada(release, token=token)
    with pytest.raises(TokenRefused):
        ada(gguf_release(tmp_path, "Q8_0", repo="labs/new"))
    with pytest.raises(TokenRefused) as error:
        ada(release, token="hf_wrongwrongwrong")
    assert "hf_wrong" not in str(error.value)
    with pytest.raises(TokenRefused, match="HF_TOKEN"):
        ada(release, token="")
    with pytest.raises(BadSettings, match="--namespace"):
        ada(gguf_release(tmp_path, "Q8_0", repo="tiny-GGUF"))


def test_a_missing_local_file_is_found_before_anything_is_sent(hub: Hub, ada: Publisher, tmp_path: Path):
    release = gguf_release(tmp_path, "Q8_0")
    (tmp_path / "tiny-Q8_0.gguf").unlink()
    with pytest.raises(HubFailed, match="not there"):
        ada(release)
    assert hub.journal.requests == []


# --- faults: main ---------------------------------------------------------------------------------------------

ROUTES = ["GET .*/refs", "GET .*/tree/", "preupload", "info/lfs", "PUT /storage", "verify", "/commit/", "repos/create",
          "validate-yaml", "GET /api/models/ada/tiny-GGUF$"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 502}, {"status": 503, "retry_after": 3}, {"status": 504},
                                   {"status": 429, "retry_after": 5}, {"status": 429}, {"cut": "before"}, {"cut": "answer"}],
                         ids=["500", "502", "503", "504", "429-after", "429", "cut", "lost"])  # fmt: skip
def test_a_passing_fault_on_any_call_ends_in_one_whole_release(
    hub: Hub, ada: Publisher, tmp_path: Path, route: str, fault: dict
):
    ordered = hub.fail(route, times=2, **fault)
    release = gguf_release(tmp_path, "Q8_0")
    receipt = ada(release)
    assert ordered.hit >= 1, "the fault was met"
    assert receipt.status in ("published", "unchanged")
    assert holds(hub, release)
    assert len(hub.history("ada/tiny-GGUF")) == 2, "one commit, whatever was asked for twice"


def test_an_upload_cut_in_the_middle_is_sent_again(hub: Hub, ada: Publisher, tmp_path: Path):
    ordered = hub.fail("PUT /storage", times=3, cut="upload", after=5000)
    release = gguf_release(tmp_path, "Q8_0", "Q4_K_M")
    ada(release)
    assert ordered.hit == 3
    assert holds(hub, release)


def test_parts_of_a_large_upload_are_sent_again_alone(hub: Hub, ada: Publisher, tmp_path: Path):
    hub.multipart_size = 10_000
    hub.fail("PUT /storage/part/.*/2", times=1, status=500)
    release = gguf_release(tmp_path, "Q8_0")
    ada(release)
    assert holds(hub, release)
    assert hub.journal.count("PUT /storage/part/.*/2\\?") == 2
    assert hub.journal.count("PUT /storage/part/.*/1\\?") == 1


def test_a_lost_answer_to_a_commit_is_not_a_second_commit(hub: Hub, ada: Publisher, tmp_path: Path):
    hub.fail("POST .*/commit/", cut="answer")
    receipt = ada(gguf_release(tmp_path, "Q8_0"))
    assert receipt.status == "published"
    assert len(receipt.files) == 3
    assert commits(hub) == 1


def test_waits_are_what_the_hub_asks_for(hub: Hub, ada: Publisher, tmp_path: Path):
    hub.fail("POST .*/commit/", status=429, retry_after=33)
    ada(gguf_release(tmp_path, "Q8_0"))
    assert ada.slept == [34.5]


def test_a_hub_that_stays_down_is_given_up_with_nothing_visible(hub: Hub, ada: Publisher, tmp_path: Path):
    hub.fail("POST .*/commit/", status=503, times=None)
    with pytest.raises(HubFailed, match="503"):
        ada(gguf_release(tmp_path, "Q8_0"))
    assert list(hub.files("ada/tiny-GGUF")) == [".gitattributes"]
    hub.heal()
    hub.journal.clear()
    assert ada(gguf_release(tmp_path, "Q8_0")).status == "published"
    assert hub.journal.count("PUT /storage") == 0, "what was uploaded is not sent again"


def test_a_token_revoked_half_way_leaves_nothing_visible_and_the_next_run_finishes(
    hub: Hub, ada: Publisher, tmp_path: Path
):
    release = gptq_release(tmp_path, "gptq-4bit-128g", "gptq-8bit-128g")
    for uses in range(2, 30, 3):
        token = hub.user("ada")
        hub.revoke(token, after=uses)
        try:
            ada(release, token=token)
            break
        except TokenRefused:
            for branch in release.branches:
                if hub.find("model", release.repo_id) and branch in [
                    b.removeprefix("refs/heads/") for b in hub.repo(release.repo_id).refs
                ]:
                    assert holds(hub, release, branch) or list(hub.files(release.repo_id, branch)) == [".gitattributes"]
    ada(release)
    assert all(holds(hub, release, branch) for branch in release.branches)
    assert [len(hub.history(release.repo_id, branch)) for branch in release.branches] == [2, 2]


def test_a_repo_deleted_half_way_is_an_error_that_says_so(hub: Hub, ada: Publisher, tmp_path: Path):
    hub.fail("POST .*/commit/", do=lambda: hub.delete_repo("ada/tiny-GGUF"))
    with pytest.raises(HubFailed, match="no ada/tiny-GGUF"):
        ada(gguf_release(tmp_path, "Q8_0"))
    assert ada(gguf_release(tmp_path, "Q8_0")).status == "published"


def test_a_strangers_commit_meanwhile_is_kept(hub: Hub, ada: Publisher, tmp_path: Path):
    hub.model("ada/tiny-GGUF")
    hub.fail("POST .*/commit/", times=3, do=lambda: hub.commit("ada/tiny-GGUF", {f"n{commits(hub)}.md": "theirs"}))
    release = gguf_release(tmp_path, "Q8_0")
    ada(release)
    assert holds(hub, release)
    assert {"n0.md", "n1.md", "n2.md"} <= set(hub.files("ada/tiny-GGUF"))


def test_a_card_edited_meanwhile_is_not_overwritten(hub: Hub, ada: Publisher, tmp_path: Path):
    hub.model("ada/tiny-GGUF", {"README.md": "# Old"})
    hub.fail("POST .*/commit/", do=lambda: hub.commit("ada/tiny-GGUF", {"README.md": "# Theirs"}))
    with pytest.raises(PublishConflict, match=r"README\.md"):
        ada(gguf_release(tmp_path, "Q8_0"))
    assert hub.read("ada/tiny-GGUF", "README.md") == b"# Theirs"


def test_two_machines_at_once_end_with_one_release(hub: Hub, ada: Publisher, tmp_path: Path):
    mine, theirs = gguf_release(tmp_path / "a", "Q8_0"), gguf_release(tmp_path / "b", "Q8_0")
    hub.fail("POST .*/commit/", do=lambda: ada(theirs))
    receipt = ada(mine)
    assert receipt.status == "unchanged"
    assert len(hub.history("ada/tiny-GGUF")) == 2
    assert holds(hub, theirs)


def test_bytes_that_the_hub_stored_wrong_are_noticed(hub: Hub, ada: Publisher, tmp_path: Path):
    release = gguf_release(tmp_path, "Q8_0")
    entry = hub.store.small(b"something else")
    hub.model("ada/tiny-GGUF")
    genuine = hub.store.advance

    def spoil(repo, ref, files, *args, **kwargs):
        return genuine(repo, ref, {**files, "hubbot.json": entry}, *args, **kwargs)

    hub.store.advance = spoil  # type: ignore[method-assign] # this server's own
    with pytest.raises(HubFailed, match="other bytes"):
        ada(release)
    assert commits(hub) == 1


def test_the_budget_of_commits_is_waited_for_or_refused(hub: Hub, ada: Publisher, tmp_path: Path):
    now, slept, noted = [10_000.0], list[float](), list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    limit = RateLimit(per_hour=2, spent=[6_500.0, 9_000.0], clock=lambda: now[0], sleep=sleep, on_commit=noted.append)
    ada(gguf_release(tmp_path, "Q8_0"), commits=limit)
    assert slept == [100.0]
    assert noted == [10_100.0]
    with pytest.raises(HubFailed, match="2 commits were made in the last hour"):
        ada(gguf_release(tmp_path, "Q8_0", seed=1), commits=limit)
    now[0] = 5.0  # the clock went back
    assert ada(gguf_release(tmp_path, "Q8_0", seed=1), commits=limit).status == "published"


# --- pull requests ----------------------------------------------------------------------------------------------


def test_a_pull_request_shows_the_release_and_leaves_main_alone(hub: Hub, ada: Publisher, tmp_path: Path):
    release = gguf_release(tmp_path, "Q8_0", "Q4_K_M")
    receipt = ada(release, "pr")
    assert (receipt.status, receipt.pull_request) == ("pull-request", 1)
    assert receipt.pull_request_url == f"{hub.endpoint}/ada/tiny-GGUF/discussions/1"
    [pull] = hub.pulls("ada/tiny-GGUF")
    assert (pull.status, pull.title) == ("open", release.title)
    assert pull.events[0]["data"]["latest"]["raw"].startswith("Release 0")
    assert list(hub.files("ada/tiny-GGUF")) == [".gitattributes"]
    assert holds(hub, release, revision="refs/pr/1")
    assert [file.path for file in receipt.files] == sorted(release.branches["main"])


def test_a_retry_finds_its_pull_request_and_a_newer_release_updates_it(hub: Hub, ada: Publisher, tmp_path: Path):
    ada(gguf_release(tmp_path / "a", "Q8_0", "Q2_K"), "pr")
    hub.journal.clear()
    again = ada(gguf_release(tmp_path / "b", "Q8_0", "Q2_K"), "pr")
    assert (again.status, again.pull_request, again.files) == ("pull-request", 1, ())
    assert commits(hub) == 0
    newer = gguf_release(tmp_path / "c", "Q8_0", "Q4_K_M", seed=1)
    receipt = ada(newer, "pr")
    assert (receipt.status, receipt.pull_request) == ("pull-request", 1)
    [pull] = hub.pulls("ada/tiny-GGUF")
    assert pull.title == newer.title
    assert pull.events[0]["data"]["latest"]["raw"].startswith("Release 1")
    assert holds(hub, newer, revision="refs/pr/1")
    assert "tiny-Q2_K.gguf" not in hub.files("ada/tiny-GGUF", "refs/pr/1")


def test_a_stranger_may_offer_a_release_to_a_repo_of_others(hub: Hub, ada: Publisher, tmp_path: Path):
    hub.model("labs/tiny-GGUF", {"README.md": "# Theirs"})
    release = gguf_release(tmp_path, "Q8_0", repo="labs/tiny-GGUF")
    receipt = ada(release, "pr")
    assert receipt.status == "pull-request"
    assert not receipt.created
    assert hub.journal.count("repos/create") == 0
    hub.merge_pull("labs/tiny-GGUF", 1)
    assert holds(hub, release)
    assert ada(release, "pr").status == "unchanged"
    assert len(hub.pulls("labs/tiny-GGUF")) == 1


def test_a_declined_pull_request_is_not_opened_again_but_a_newer_release_is(hub: Hub, ada: Publisher, tmp_path: Path):
    release = gguf_release(tmp_path / "a", "Q8_0")
    ada(release, "pr")
    hub.pulls("ada/tiny-GGUF")[0].status = "closed"
    assert ada(release, "pr").status == "declined"
    assert ada(gguf_release(tmp_path / "b", "Q8_0", seed=1), "pr").pull_request == 2
    assert len(hub.pulls("ada/tiny-GGUF")) == 2


def test_a_strangers_request_with_our_mark_is_not_ours(hub: Hub, ada: Publisher, tmp_path: Path):
    from huggingface_hub import HfApi

    from hubbot.hub.publish.pull_requests import mark

    hub.model("ada/tiny-GGUF")
    eve = HfApi(endpoint=hub.endpoint, token=hub.user("eve"))
    eve.create_pull_request("ada/tiny-GGUF", title="Quantize ada/tiny (0)", description=mark("main"))
    assert ada(gguf_release(tmp_path, "Q8_0"), "pr").pull_request == 2


def test_a_gptq_release_is_one_pull_request_that_becomes_branches_after_the_merge(
    hub: Hub, ada: Publisher, tmp_path: Path
):
    release = gptq_release(tmp_path, "gptq-4bit-128g", "gptq-4bit-32g-actorder", "gptq-8bit-128g")
    receipt = ada(release, "pr")
    assert sorted(receipt.commits) == ["gptq-4bit-32g-actorder", "gptq-8bit-128g", "main"]
    for branch, sha in receipt.commits.items():
        assert holds(hub, release, branch, revision=sha)
        assert sorted(hub.files(release.repo_id, sha)) == sorted([".gitattributes", *release.branches[branch]])
    assert len(hub.pulls(release.repo_id)) == 1
    assert [ref for ref in hub.repo(release.repo_id).refs if "heads" in ref] == ["refs/heads/main"]
    assert ada(release, "pr").status == "pull-request"
    hub.merge_pull(release.repo_id, 1)
    hub.journal.clear()
    assert ada(release, "pr").status == "published"
    assert all(holds(hub, release, branch) for branch in release.branches)
    assert commits(hub) == 0, "the branches begin at the pull request's commits"
    assert ada(release, "pr").status == "unchanged"
    newer = gptq_release(tmp_path / "n", "gptq-4bit-128g", "gptq-8bit-128g", seed=5)
    assert ada(newer, "pr").pull_request == 2
    hub.merge_pull(release.repo_id, 2)
    assert ada(newer, "pr").status == "published"
    assert all(holds(hub, newer, branch) for branch in newer.branches)


def test_a_merged_request_is_finished_without_the_files_at_hand(hub: Hub, ada: Publisher, tmp_path: Path):
    from hubbot.hub.publish.after_merge import finish_merged

    seen = ada.seen()
    release = gptq_release(tmp_path / "a", "gptq-4bit-128g", "gptq-8bit-128g")
    receipt = ada(release, "pr")
    assert finish_merged(release.repo_id, seen) == {}, "nothing before the merge"
    hub.merge_pull(release.repo_id, 1)
    assert finish_merged(release.repo_id, seen) == {"gptq-8bit-128g": receipt.commits["gptq-8bit-128g"]}
    assert finish_merged(release.repo_id, seen) == {}
    assert all(holds(hub, release, branch) for branch in release.branches)
    newer = gptq_release(tmp_path / "b", "gptq-4bit-128g", "gptq-8bit-128g", seed=3)
    ada(newer, "pr")
    assert finish_merged(release.repo_id, seen) == {}, "the newer one is not merged"
    hub.merge_pull(release.repo_id, 2)
    hub.journal.clear()
    hub.fail("POST .*/commit/", cut="answer")
    assert list(finish_merged(release.repo_id, seen)) == ["gptq-8bit-128g"]
    assert all(holds(hub, newer, branch) for branch in newer.branches)
    assert commits(hub) == 1
    assert hub.journal.count("PUT /storage") == 0
    assert ada(newer, "pr").status == "unchanged"


@pytest.mark.parametrize("fault", [None, "before", "answer"])
def test_a_release_beside_mains_is_offered_to_its_own_branch(
    hub: Hub, ada: Publisher, tmp_path: Path, fault: str | None
):
    from dataclasses import replace

    ada(gptq_release(tmp_path / "old", "gptq-4bit-128g"))
    made = gptq_release(tmp_path / "new", "gptq-4bit-128g", "gptq-8bit-128g", seed=1)
    branches = {"second": made.branches["main"], "gptq-8bit-128g-second": made.branches["gptq-8bit-128g"]}
    beside = replace(made, branches=branches)
    main = hub.files(made.repo_id)
    if fault:
        hub.fail("POST .*/commit/second", cut=fault)
    assert ada(beside, "pr").status == "pull-request"
    assert ada(beside, "pr").pull_request == 1
    [pull] = hub.pulls(made.repo_id)
    assert (pull.base, pull.title, pull.status) == ("refs/heads/second", beside.title, "open")
    assert list(hub.files(made.repo_id, "second")) == [".gitattributes"]
    hub.merge_pull(made.repo_id, 1)
    assert ada(beside, "pr").status == "published"
    assert all(holds(hub, beside, branch) for branch in branches)
    assert hub.files(made.repo_id) == main


PULL_ROUTES = ["whoami", "GET .*/discussions\\?", "GET .*/discussions/1", "POST .*/discussions$", "POST .*/commit/",
               "POST .*/status", "GET .*/refs", "GET .*/commits/"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("route", PULL_ROUTES)
@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429, "retry_after": 2}, {"cut": "before"}, {"cut": "answer"}],
                         ids=["503", "429", "cut", "lost"])  # fmt: skip
def test_a_passing_fault_never_makes_a_second_pull_request(
    hub: Hub, ada: Publisher, tmp_path: Path, route: str, fault: dict
):
    ordered = hub.fail(route, times=2, **fault)
    release = gptq_release(tmp_path, "gptq-4bit-128g", "gptq-8bit-128g")
    ada(release, "pr")
    ada(gptq_release(tmp_path, "gptq-4bit-128g", "gptq-8bit-128g"), "pr")
    assert ordered.hit >= 1
    [pull] = hub.pulls(release.repo_id)
    assert pull.status == "open"
    assert len(hub.history(release.repo_id, "refs/pr/1")) == 3
    assert list(hub.files(release.repo_id)) == [".gitattributes"]


def test_two_bots_that_open_at_once_end_with_one_waiting_request(hub: Hub, ada: Publisher, tmp_path: Path):
    mine, theirs = gguf_release(tmp_path / "a", "Q8_0"), gguf_release(tmp_path / "b", "Q8_0")
    hub.model("ada/tiny-GGUF")
    hub.fail("POST .*/discussions$", do=lambda: ada(theirs, "pr"))
    receipt = ada(mine, "pr")
    assert receipt.pull_request == 1
    assert [pull.status for pull in hub.pulls("ada/tiny-GGUF")] == ["open", "closed"]
    assert holds(hub, theirs, revision="refs/pr/1")


def test_no_token_is_written_anywhere(hub: Hub, ada: Publisher, tmp_path: Path):
    ada(gguf_release(tmp_path, "Q8_0"), "pr")
    assert ada.token.encode() not in hub.blobs.everything()
    assert all(ada.token not in str(event) for event in hub.pulls("ada/tiny-GGUF")[0].events)


def test_a_request_that_a_rival_opened_meanwhile_is_taken_and_no_second_one_opened(
    hub: Hub, ada: Publisher, tmp_path: Path
):
    mine, theirs = gguf_release(tmp_path / "a", "Q8_0"), gguf_release(tmp_path / "b", "Q8_0")
    hub.model("ada/tiny-GGUF")
    looked = hub.fail("GET .*/refs", skip=1, do=lambda: ada(theirs, "pr"))  # after `latest`, before `open`
    assert ada(mine, "pr").pull_request == 1
    assert looked.hit == 1
    assert [pull.status for pull in hub.pulls("ada/tiny-GGUF")] == ["open"]
    assert hub.journal.count("POST .*/discussions$") == 1


def one_machines(hub: Hub, release: RepoRelease) -> bool:
    """Whether every branch holds the bytes that main's record lists."""
    listed = json.loads(hub.read(release.repo_id, "hubbot.json"))["variants"]
    wanted = {file["path"]: file["sha256"] for variant in listed for file in variant["files"]}
    return all(
        hub.files(release.repo_id, branch)[path].sha256 == wanted[f"gptq/{local.parent.name}/{path}"]
        for branch, files in release.branches.items()
        for path, local in files.items()
        if path == "model.safetensors"
    )


NAMES = ("gptq-4bit-128g", "gptq-8bit-128g", "gptq-3bit-128g")


@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("mode", ["main", "pr"])
def test_two_machines_with_other_bytes_never_mix_them_in_one_release(
    hub: Hub, ada: Publisher, tmp_path: Path, after: int, mode: Literal["pr", "main"]
):
    mine, theirs = (gptq_release(tmp_path / str(n), *NAMES, machine=n) for n in range(2))
    hub.fail("POST .*/commit/", skip=after, times=None, status=403)
    with contextlib.suppress(TokenRefused):
        ada(theirs, mode)
    hub.heal()
    ada(mine, mode)
    if mode == "pr":
        hub.merge_pull(mine.repo_id, 1)
        ada(mine, mode)
    assert one_machines(hub, mine)


@pytest.mark.parametrize("after", range(3))
def test_two_machines_with_other_bytes_at_once_never_mix_them(hub: Hub, ada: Publisher, tmp_path: Path, after: int):
    mine, theirs = (gptq_release(tmp_path / str(n), *NAMES, machine=n) for n in range(2))
    hub.fail("POST .*/commit/", skip=after, do=lambda: ada(theirs))
    ada(mine)
    assert one_machines(hub, mine)
    commits_before = commits(hub)
    assert [ada(release).status for release in (mine, theirs)] == ["unchanged", "unchanged"]
    assert commits(hub) == commits_before


def test_a_record_that_arrives_spoilt_is_no_rival(hub: Hub, ada: Publisher, tmp_path: Path):
    release = gptq_release(tmp_path, *NAMES)
    hub.fail(r"GET .*resolve.*hubbot\.json", times=None, corrupt=0)
    assert ada(release).status == "published"
    assert one_machines(hub, release)
    assert commits(hub) == 3


def test_every_commit_and_branch_is_taken_from_the_budget_that_is_kept(hub: Hub, ada: Publisher, tmp_path: Path):
    noted = list[float]()
    limit = RateLimit(per_hour=100, on_commit=noted.append)
    ada(gptq_release(tmp_path / "a", *NAMES), commits=limit)
    ada(gguf_release(tmp_path / "b", "Q8_0"), "pr", commits=limit)
    assert commits(hub) == 4
    assert len(noted) == 4 + 2, "three commits and two branches of the one, one commit of the other"
    with pytest.raises(HubFailed, match="in the last hour"):
        ada(gptq_release(tmp_path / "c", *NAMES, seed=1), commits=RateLimit(per_hour=1))


def test_what_is_not_allowed_any_more_is_not_shown(hub: Hub, ada: Publisher, tmp_path: Path):
    def refuse() -> None:
        raise HubFailed("it was taken back")

    hub.model("ada/tiny-GGUF")
    for mode in ("main", "pr"):
        with pytest.raises(HubFailed, match="taken back"):
            ada(gguf_release(tmp_path, "Q8_0"), mode, commits=RateLimit(allowed=refuse))
    assert list(hub.files("ada/tiny-GGUF")) == [".gitattributes"]
    assert hub.pulls("ada/tiny-GGUF") == []


# --- two that meet ---------------------------------------------------------------------------------------------


def test_a_repo_that_holds_a_release_of_another_model_is_refused(hub: Hub, ada: Publisher, tmp_path: Path):
    ada(gguf_release(tmp_path / "a", "Q8_0"))
    other = gguf_release(tmp_path / "b", "Q8_0", seed=1)
    made = (tmp_path / "b" / "hubbot.json").read_text().replace('"ada/tiny"', '"evil/tiny"')
    (tmp_path / "b" / "hubbot.json").write_text(made)
    before = hub.history("ada/tiny-GGUF")
    for mode in ("main", "pr"):
        with pytest.raises(PublishConflict, match="release of ada/tiny, and this one is of evil/tiny"):
            ada(other, mode, force=True)
    assert hub.history("ada/tiny-GGUF") == before
    assert hub.pulls("ada/tiny-GGUF") == []


@pytest.mark.parametrize("turn", range(3))
def test_two_bots_that_stack_one_release_at_once_double_no_commit(hub: Hub, ada: Publisher, tmp_path: Path, turn: int):
    release = gptq_release(tmp_path, *NAMES)
    rival = Publisher(hub, ada.token)
    hub.fail("POST .*/commit/", skip=turn, do=lambda: rival(release, "pr"))
    ada(release, "pr")
    waiting = [pull for pull in hub.pulls("ada/tiny-GPTQ") if pull.status == "open"]
    titles = [commit.title for commit in hub.history("ada/tiny-GPTQ", f"refs/pr/{waiting[0].num}")]
    assert len(waiting) == 1
    assert len(titles) == len(set(titles)), titles
