"""The genuine client against the server, call by call."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    RepoFile,
    WebhookPayload,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hubbot.hub.session import belongs_to
from tests.hub import Hub

WEB = httpx2.Client()


@pytest.fixture
def ada(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.user("ada", orgs={"labs": "write"}))


@pytest.fixture
def bob(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.user("bob"))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


# --- who asks -----------------------------------------------------------------------------------------


def test_whoami_names_the_user_their_organisations_and_the_role_of_the_token(hub: Hub, ada: HfApi):
    found = ada.whoami()
    assert found["name"] == "ada"
    assert [(org["name"], org["roleInOrg"]) for org in found["orgs"]] == [("labs", "write")]
    assert found["auth"]["accessToken"]["role"] == "write"


def test_a_fine_grained_token_writes_only_where_it_may(hub: Hub):
    token = hub.user("ada", scope="fineGrained", permissions={"ada/one": ("repo.write", "repo.content.read")})
    hub.model("ada/one")
    hub.model("ada/two")
    api = HfApi(endpoint=hub.endpoint, token=token)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="ada/one")
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="ada/two")
    assert status_of(error) == 403
    assert "a.txt" not in hub.files("ada/two")


def test_a_wrong_or_revoked_token_is_refused_everywhere(hub: Hub, ada: HfApi):
    ada.create_repo("ada/m")
    hub.revoke(str(ada.token), after=1)
    assert ada.model_info("ada/m").id == "ada/m"
    with pytest.raises(HfHubHTTPError) as error:
        ada.model_info("ada/m")
    assert status_of(error) == 401
    assert "Invalid credentials" in str(error.value)


def test_private_and_missing_repos_look_alike_to_strangers(hub: Hub, ada: HfApi, bob: HfApi):
    ada.create_repo("ada/secret", private=True)
    assert ada.model_info("ada/secret").private
    for repo in ("ada/secret", "ada/nothing"):
        with pytest.raises(RepositoryNotFoundError):
            bob.model_info(repo)
        with pytest.raises(HfHubHTTPError) as error:
            HfApi(endpoint=hub.endpoint, token=False).model_info(repo)
        assert status_of(error) == 401
    assert [model.id for model in bob.list_models(author="ada")] == []
    assert [model.id for model in ada.list_models(author="ada")] == ["ada/secret"]


def test_gated_files_need_consent_while_the_description_is_open(hub: Hub, ada: HfApi, bob: HfApi, tmp_path: Path):
    hub.model("ada/gated", {"config.json": "{}"})
    ada.update_repo_settings("ada/gated", gated="manual")
    assert bob.model_info("ada/gated").gated == "manual"
    for token in (bob.token, False):
        with pytest.raises(GatedRepoError):
            hf_hub_download("ada/gated", "config.json", token=token, endpoint=hub.endpoint, cache_dir=tmp_path)
    ada.grant_access("ada/gated", "bob")
    assert [request.username for request in ada.list_accepted_access_requests("ada/gated")] == ["bob"]
    hf_hub_download("ada/gated", "config.json", token=bob.token, endpoint=hub.endpoint, cache_dir=tmp_path)
    bob.auth_check("ada/gated")


def test_a_disabled_repo_says_so(hub: Hub, ada: HfApi):
    hub.model("ada/m", disabled=True)
    with pytest.raises(DisabledRepoError):
        ada.model_info("ada/m")


# --- repositories -------------------------------------------------------------------------------------


def test_a_new_repo_begins_with_one_commit_and_cannot_be_made_twice(hub: Hub, ada: HfApi):
    url = ada.create_repo("ada/m")
    assert url.repo_id == "ada/m"
    assert [commit.title for commit in ada.list_repo_commits("ada/m")] == ["initial commit"]
    assert ada.list_repo_files("ada/m") == [".gitattributes"]
    assert ada.create_repo("ada/m", exist_ok=True).repo_id == "ada/m"
    with pytest.raises(HfHubHTTPError) as error:
        ada.create_repo("ada/m")
    assert status_of(error) == 409
    assert "You already created this model repo" in str(error.value)


def test_repos_are_made_in_organisations_but_not_in_strangers_namespaces(hub: Hub, ada: HfApi, bob: HfApi):
    assert ada.create_repo("labs/m").repo_id == "labs/m"
    with pytest.raises(HfHubHTTPError) as error:
        bob.create_repo("labs/n")
    assert status_of(error) == 403


def test_delete_move_and_duplicate(hub: Hub, ada: HfApi):
    hub.model("ada/m", {"a.txt": "one"})
    ada.move_repo("ada/m", "ada/n")
    assert ada.model_info("ada/m").id == "ada/n"
    ada.create_repo("ada/o")
    with pytest.raises(HfHubHTTPError, match="already exists"):
        ada.move_repo("ada/n", "ada/o")
    assert ada.duplicate_repo("ada/n", "ada/p").repo_id == "ada/p"
    assert hub.read("ada/p", "a.txt") == b"one"
    ada.delete_repo("ada/n")
    with pytest.raises(RepositoryNotFoundError):
        ada.model_info("ada/n")


def test_branches_tags_refs_and_history(hub: Hub, ada: HfApi):
    first = hub.model("ada/m", {"a.txt": "one"})
    hub.commit("ada/m", {"a.txt": "two"}, message="Second")
    ada.create_branch("ada/m", branch="old/one", revision=first)
    ada.create_tag("ada/m", tag="v1", revision="old/one")
    refs = ada.list_repo_refs("ada/m")
    assert {branch.name: branch.target_commit for branch in refs.branches}["old/one"] == first
    assert [tag.name for tag in refs.tags] == ["v1"]
    assert ada.model_info("ada/m", revision="v1").sha == first
    assert [c.title for c in ada.list_repo_commits("ada/m")] == ["Second", "Add files", "initial commit"]
    for again in (lambda: ada.create_branch("ada/m", branch="old/one"), lambda: ada.create_tag("ada/m", tag="v1")):
        with pytest.raises(HfHubHTTPError, match="already exists"):
            again()
    ada.delete_tag("ada/m", tag="v1")
    ada.delete_branch("ada/m", branch="old/one")
    with pytest.raises(RevisionNotFoundError):
        ada.delete_branch("ada/m", branch="old/one")
    with pytest.raises(HfHubHTTPError, match="Cannot delete"):
        ada.delete_branch("ada/m", branch="main")
    ada.super_squash_history("ada/m")
    assert len(list(ada.list_repo_commits("ada/m"))) == 1


# --- commits ------------------------------------------------------------------------------------------


def test_one_commit_adds_replaces_copies_and_deletes(hub: Hub, ada: HfApi):
    hub.model("ada/m", {"a.txt": "one", "old/b.txt": "two", "c.bin": b"\0three"})
    head = ada.model_info("ada/m").sha
    info = ada.create_commit(
        "ada/m",
        [
            CommitOperationAdd("a.txt", b"new"),
            CommitOperationAdd("weights.safetensors", b"\0" * 2000),
            CommitOperationAdd("empty.txt", b""),
            CommitOperationDelete("old/"),
            CommitOperationCopy("c.bin", "d.bin"),
        ],
        commit_message="All kinds",
        parent_commit=head,
    )
    assert hub.history("ada/m")[0].id == info.oid
    files = hub.files("ada/m")
    assert sorted(files) == [".gitattributes", "a.txt", "c.bin", "d.bin", "empty.txt", "weights.safetensors"]
    assert files["weights.safetensors"].lfs
    assert files["d.bin"] == files["c.bin"]
    assert hub.read("ada/m", "a.txt") == b"new"


def test_unchanged_files_make_no_commit(hub: Hub, ada: HfApi):
    hub.model("ada/m", {"a.txt": "one", "w.safetensors": b"\0weights"})
    operations = [CommitOperationAdd("a.txt", b"one"), CommitOperationAdd("w.safetensors", b"\0weights")]
    info = ada.create_commit("ada/m", operations, commit_message="Nothing")
    assert info.oid == hub.history("ada/m")[0].id
    assert hub.journal.count("POST .*/commit/") == 0


def test_a_stale_parent_is_refused_and_changes_nothing(hub: Hub, ada: HfApi):
    stale = hub.model("ada/m", {"a.txt": "one"})
    hub.commit("ada/m", {"a.txt": "two"})
    with pytest.raises(HfHubHTTPError) as error:
        ada.create_commit("ada/m", [CommitOperationAdd("a.txt", b"x")], commit_message="m", parent_commit=stale)
    assert status_of(error) == 412
    assert hub.read("ada/m", "a.txt") == b"two"


def test_large_files_go_up_whole_or_in_parts_and_are_checked(hub: Hub, ada: HfApi, tmp_path: Path):
    ada.create_repo("ada/m")
    content = bytes(range(256)) * 5000
    (tmp_path / "big.bin").write_bytes(content)
    ada.upload_file(path_or_fileobj=tmp_path / "big.bin", path_in_repo="one.bin", repo_id="ada/m")
    assert hub.journal.count("PUT /storage/whole") == 1
    ada.upload_file(path_or_fileobj=tmp_path / "big.bin", path_in_repo="two.bin", repo_id="ada/m")
    assert hub.journal.count("PUT /storage/whole") == 1, "the storage knew the content already"
    hub.multipart_size = 300_000
    (tmp_path / "big.bin").write_bytes(content[::-1])
    ada.upload_file(path_or_fileobj=tmp_path / "big.bin", path_in_repo="three.bin", repo_id="ada/m")
    assert hub.journal.count("PUT /storage/part") == 5
    assert hub.journal.count("POST /ada/m.git/info/lfs/objects/verify") == 2
    assert hub.read("ada/m", "three.bin") == content[::-1]


def test_a_commit_of_a_large_file_that_was_never_uploaded_is_refused(hub: Hub, ada: HfApi):
    ada.create_repo("ada/m")
    lines = [
        {"key": "header", "value": {"summary": "s", "description": ""}},
        {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 4}},
    ]
    answer = WEB.post(
        f"{hub.endpoint}/api/models/ada/m/commit/main",
        content="\n".join(map(json.dumps, lines)),
        headers={"Authorization": f"Bearer {ada.token}"},
    )
    assert answer.status_code == 400
    assert "does not exist" in answer.json()["error"]


def test_an_upload_whose_bytes_differ_from_its_oid_is_refused(hub: Hub, ada: HfApi):
    ada.create_repo("ada/m")
    answer = WEB.put(hub.signed("whole/" + "0" * 64), content=b"other")
    assert answer.status_code == 400
    assert WEB.put(f"{hub.storage}/storage/whole/{'0' * 64}", content=b"other").status_code == 403


def test_the_storage_refuses_requests_that_carry_a_token():
    with Hub() as hub:
        answer = WEB.put(hub.signed("whole/" + "0" * 64), content=b"", headers={"Authorization": "Bearer hf_x"})
        assert answer.status_code in (400, 401)
        token = hub.user("ada")
        answer = WEB.get(hub.signed("blob/" + "0" * 64), headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 400
        assert len(hub.journal.leaks) == 1


def test_strangers_may_open_pull_requests_but_not_commit(hub: Hub, ada: HfApi, bob: HfApi):
    hub.model("ada/m", {"a.txt": "one"})
    with pytest.raises(HfHubHTTPError, match="create_pr"):
        bob.upload_file(path_or_fileobj=b"x", path_in_repo="b.txt", repo_id="ada/m")
    operations = [CommitOperationAdd("b.bin", b"\0x")]
    info = bob.create_commit("ada/m", operations, commit_message="Add b", create_pr=True)
    assert info.pr_num == 1
    assert info.pr_revision == "refs/pr/1"
    bob.upload_file(path_or_fileobj=b"y", path_in_repo="c.txt", repo_id="ada/m", revision="refs/pr/1")
    assert sorted(hub.files("ada/m", "refs/pr/1")) == [".gitattributes", "a.txt", "b.bin", "c.txt"]
    assert "b.bin" not in hub.files("ada/m")
    ada.merge_pull_request("ada/m", 1)
    assert sorted(hub.files("ada/m")) == [".gitattributes", "a.txt", "b.bin", "c.txt"]
    assert ada.get_discussion_details("ada/m", 1).status == "merged"


def test_a_card_with_bad_metadata_is_refused_before_and_at_the_commit(hub: Hub, ada: HfApi, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)  # ModelCard knows no other way
    ada.create_repo("ada/m")
    for header in (
        "license: my-own",
        "license: [",
        "base_model_relation: child",
        "tags: one",
        "model-index: []\nmodel-index: []",
    ):
        with pytest.raises(ValueError, match="Invalid metadata"):
            ada.upload_file(path_or_fileobj=f"---\n{header}\n---\n".encode(), path_in_repo="README.md", repo_id="ada/m")
    assert "README.md" not in hub.files("ada/m")
    with pytest.raises(ValueError, match="license"):
        ModelCard("---\nlicense: my-own\n---\n").push_to_hub("ada/m", token=str(ada.token))
    card = ModelCard("---\nlicense: mit\nbase_model: ada/base\nbase_model_relation: quantized\n---\n# Hello\n")
    ada.upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id="ada/m")
    info = ada.model_info("ada/m")
    assert info.card_data.license == "mit"
    assert "base_model:quantized:ada/base" in info.tags


@pytest.mark.parametrize("path", ["..\\up.txt", "../up.txt"])
def test_paths_that_leave_the_repo_are_refused(hub: Hub, ada: HfApi, path: str):
    ada.create_repo("ada/m")
    answer = WEB.post(
        f"{hub.endpoint}/api/models/ada/m/preupload/main",
        json={"files": [{"path": path, "sample": "", "size": 0}]},
        headers={"Authorization": f"Bearer {ada.token}"},
    )
    assert answer.status_code == 422


def test_deleting_what_is_not_there_is_an_error(hub: Hub, ada: HfApi):
    ada.create_repo("ada/m")
    with pytest.raises(EntryNotFoundError):
        ada.delete_file("a.txt", repo_id="ada/m")


def test_commits_without_operations_are_refused(hub: Hub, ada: HfApi):
    ada.create_repo("ada/m")
    answer = WEB.post(
        f"{hub.endpoint}/api/models/ada/m/commit/main",
        content=json.dumps({"key": "header", "value": {"summary": "s"}}),
        headers={"Authorization": f"Bearer {ada.token}"},
    )
    assert answer.status_code == 400


# --- reading ------------------------------------------------------------------------------------------


def test_downloads_follow_to_the_storage_without_the_token(hub: Hub, ada: HfApi, tmp_path: Path):
    content = bytes(range(256)) * 100
    sha = hub.model("ada/m", {"w.safetensors": content, "dir/a b.txt": "text"}, private=True)
    folder = snapshot_download("ada/m", token=ada.token, endpoint=hub.endpoint, cache_dir=tmp_path)
    assert Path(folder, "w.safetensors").read_bytes() == content
    assert Path(folder, "dir/a b.txt").read_text() == "text"
    assert Path(folder).name == sha
    assert [r.with_token for r in hub.journal.find("GET /storage/")] == [False]


def test_ranges_are_served(hub: Hub, ada: HfApi):
    hub.model("ada/m", {"w.safetensors": bytes(range(256))})
    for header, expected in (
        ("bytes=2-4", bytes([2, 3, 4])),
        ("bytes=-2", bytes([254, 255])),
        ("bytes=254-", bytes([254, 255])),
    ):
        answer = WEB.get(
            f"{hub.endpoint}/ada/m/resolve/main/w.safetensors", headers={"Range": header}, follow_redirects=True
        )
        assert answer.status_code == 206
        assert answer.content == expected
    answer = WEB.get(
        f"{hub.endpoint}/ada/m/resolve/main/w.safetensors", headers={"Range": "bytes=900-"}, follow_redirects=True
    )
    assert answer.status_code == 416


def test_missing_files_and_revisions_raise_their_own_errors(hub: Hub, ada: HfApi, tmp_path: Path):
    hub.model("ada/m", {"a.txt": "one"})
    arguments: dict[str, Any] = {"endpoint": hub.endpoint, "cache_dir": tmp_path, "token": ada.token}
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("ada/m", "b.txt", **arguments)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("ada/m", "a.txt", revision="v9", **arguments)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("ada/n", "a.txt", **arguments)


def test_trees_and_path_info_tell_sizes_and_hashes(hub: Hub, ada: HfApi):
    hub.model("ada/m", {"w.safetensors": b"\0weights", "dir/a.txt": "one", "dir/sub/b.txt": "two"})
    hub.commit("ada/m", {"dir/a.txt": "new"}, message="Later")
    items = {item.path: item for item in ada.list_repo_tree("ada/m", recursive=True, expand=True)}
    assert list(items) == [".gitattributes", "dir", "dir/a.txt", "dir/sub", "dir/sub/b.txt", "w.safetensors"]
    assert isinstance(items["w.safetensors"], RepoFile)
    assert items["w.safetensors"].lfs.sha256 == hub.files("ada/m")["w.safetensors"].sha256
    assert items["dir/a.txt"].last_commit.title == "Later"
    assert items["dir/sub/b.txt"].last_commit.title == "Add files"
    assert [item.path for item in ada.list_repo_tree("ada/m", "dir")] == ["dir/a.txt", "dir/sub"]
    found = ada.get_paths_info("ada/m", ["dir/a.txt", "nothing", "dir"])
    assert [item.path for item in found] == ["dir/a.txt", "dir"]
    with pytest.raises(EntryNotFoundError):
        list(ada.list_repo_tree("ada/m", "nothing"))


def test_model_info_reads_card_config_and_safetensors(hub: Hub, ada: HfApi):
    import numpy as np
    from safetensors.numpy import save

    weights = save({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)})
    card = "---\nlicense: mit\nlanguage: [en, de]\ntags: [tiny]\npipeline_tag: text-generation\n---\n"
    config = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    hub.model("ada/m", {"model.safetensors": weights, "README.md": card, "config.json": config})
    info = ada.model_info("ada/m", files_metadata=True)
    assert info.safetensors.parameters == {"F32": 12, "F16": 5}
    assert info.safetensors.total == 17
    assert info.config["architectures"] == ["LlamaForCausalLM"]
    assert {"tiny", "en", "de", "license:mit", "safetensors", "transformers"} <= set(info.tags)
    assert {s.rfilename: s.size for s in info.siblings}["model.safetensors"] == len(weights)
    assert next(s for s in info.siblings if s.lfs).lfs.sha256
    assert ada.model_info("ada/m", expand=["downloads"]).downloads == 0
    with pytest.raises(BadRequestError, match="must be one of"):
        list(ada.list_models(author="ada", expand=["nonsense"]))  # type: ignore[list-item]


def test_models_are_listed_by_filters_in_order_and_in_pages(hub: Hub, ada: HfApi):
    hub.page_size = 2
    for index, licence in enumerate(["mit", "apache-2.0", "mit", "mit", "mit"]):
        hub.model(f"ada/m{index}", {"README.md": f"---\nlicense: {licence}\n---\n"}, downloads=index)
    hub.model("labs/m9", {"README.md": "---\nlicense: mit\n---\n"}, gated="auto")
    assert [m.id for m in ada.list_models(author="ada", sort="downloads")] == [
        "ada/m4",
        "ada/m3",
        "ada/m2",
        "ada/m1",
        "ada/m0",
    ]
    assert hub.journal.count("GET /api/models\\?") == 3
    assert [m.id for m in ada.list_models(filter="license:mit", sort="created_at", limit=2)] == ["labs/m9", "ada/m4"]
    assert [m.id for m in ada.list_models(search="m1")] == ["ada/m1"]
    assert [m.id for m in ada.list_models(gated=True)] == ["labs/m9"]
    hub.commit("ada/m0", {"a.txt": "x"})
    newest = next(iter(ada.list_models(author="ada", sort="last_modified", full=True)))
    assert (newest.id, newest.sha) == ("ada/m0", hub.history("ada/m0")[0].id)


def test_an_unchanged_list_is_answered_304(hub: Hub):
    hub.model("ada/m")
    url = f"{hub.endpoint}/api/models?author=ada"
    etag = WEB.get(url).headers["ETag"]
    assert WEB.get(url, headers={"If-None-Match": etag}).status_code == 304
    hub.commit("ada/m", {"a.txt": "x"})
    assert WEB.get(url, headers={"If-None-Match": etag}).status_code == 200


def test_collections_name_their_models(hub: Hub, ada: HfApi):
    hub.collection("ada/best-123", ["ada/m", "ada/n"])
    assert [item.item_id for item in ada.get_collection("ada/best-123").items] == ["ada/m", "ada/n"]


# --- discussions and webhooks -------------------------------------------------------------------------


def test_discussions_are_opened_listed_commented_renamed_and_closed(hub: Hub, ada: HfApi, bob: HfApi):
    hub.model("ada/m", {"a.txt": "one"})
    for number in range(12):
        bob.create_discussion("ada/m", title=f"Question {number}", description="Why?")
    pull = bob.create_pull_request("ada/m", title="Draft")
    assert pull.status == "draft"
    assert pull.git_reference == "refs/pr/13"
    listed = list(ada.get_repo_discussions("ada/m"))
    assert len(listed) == 13
    assert [d.num for d in ada.get_repo_discussions("ada/m", discussion_type="pull_request", author="bob")] == [13]
    comment = ada.comment_discussion("ada/m", 1, "Because.")
    ada.edit_discussion_comment("ada/m", 1, comment.id, "Because of this.")
    ada.rename_discussion("ada/m", 1, "Answered")
    ada.change_discussion_status("ada/m", 1, "closed")
    details = bob.get_discussion_details("ada/m", 1)
    assert (details.title, details.status) == ("Answered", "closed")
    assert [event.type for event in details.events] == ["comment", "comment", "title-change", "status-change"]
    assert vars(details.events[1])["content"] == "Because of this."
    with pytest.raises(HfHubHTTPError):
        HfApi(endpoint=hub.endpoint, token=hub.user("eve")).change_discussion_status("ada/m", 2, "closed")


def test_merging_keeps_what_others_did_and_refuses_conflicts(hub: Hub, ada: HfApi):
    hub.model("ada/m", {"a.txt": "one", "b.txt": "one"})
    ada.create_commit("ada/m", [CommitOperationAdd("a.txt", b"mine")], commit_message="A", create_pr=True)
    ada.create_commit("ada/m", [CommitOperationAdd("a.txt", b"other")], commit_message="B", create_pr=True)
    hub.commit("ada/m", {"b.txt": "theirs"})
    ada.merge_pull_request("ada/m", 1)
    assert (hub.read("ada/m", "a.txt"), hub.read("ada/m", "b.txt")) == (b"mine", b"theirs")
    assert ada.get_discussion_details("ada/m", 2).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError, match="conflict"):
        ada.merge_pull_request("ada/m", 2)


def test_webhooks_are_delivered_with_their_secret_for_pushes_and_pull_requests(hub: Hub, ada: HfApi):
    got: list[tuple[str, WebhookPayload]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.headers["X-Webhook-Secret"], WebhookPayload.model_validate_json(body)))
            self.send_response(202)
            self.end_headers()

        def log_message(self, *_):
            pass

    receiver = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{receiver.server_port}/"
    hook = ada.create_webhook(url=url, watched=[{"type": "user", "name": "ada"}], domains=["repo"], secret="s3cret")
    assert [found.id for found in ada.list_webhooks()] == [hook.id]
    ada.create_repo("ada/m")
    ada.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="ada/m")
    ada.upload_file(path_or_fileobj=b"y", path_in_repo="a.txt", repo_id="ada/m", create_pr=True)
    ada.disable_webhook(hook.id)
    hub.commit("ada/m", {"a.txt": "z"})
    hub.settle()
    assert {secret for secret, _ in got} == {"s3cret"}
    changed = [p.updatedRefs[0].ref for _, p in got if p.event.scope == "repo.content"]
    assert sorted(set(changed)) == ["refs/heads/main", "refs/pr/1"]
    assert hub.repo("ada/m").refs["refs/heads/main"] not in [p.updatedRefs[0].newSha for _, p in got if p.updatedRefs]
    ada.delete_webhook(hook.id)
    assert ada.list_webhooks() == []
    receiver.shutdown()


def test_jobs_keep_what_they_were_told(hub: Hub, ada: HfApi):
    job = ada.run_job(image="hubbot", command=["hubbot", "run"], secrets={"HF_TOKEN": "x"}, flavor="a100-large")
    assert job.status.stage == "RUNNING"
    assert hub.jobs[job.id]["sent"]["flavor"] == "a100-large"


# --- faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_ordered_status_hits_the_nth_call_only(hub: Hub, status: int):
    hub.model("ada/m")
    hub.fail("GET /api/models/ada/m", skip=1, times=2, status=status, retry_after=7)
    answers = [WEB.get(f"{hub.endpoint}/api/models/ada/m") for _ in range(4)]
    assert [a.status_code for a in answers] == [200, status, status, 200]
    assert answers[1].headers["Retry-After"] == "7"


def test_the_client_waits_out_faults_of_preupload(hub: Hub, ada: HfApi):
    ada.create_repo("ada/m")
    hub.fail("preupload", times=3, status=503)
    hub.fail("PUT /storage", times=2, cut="upload", after=100)
    ada.upload_file(path_or_fileobj=b"\0" * 300_000, path_in_repo="a.bin", repo_id="ada/m")
    assert hub.files("ada/m")["a.bin"].size == 300_000


def test_a_lost_answer_leaves_the_commit_done(hub: Hub, ada: HfApi):
    ada.create_repo("ada/m")
    hub.fail("POST .*/commit/", cut="answer")
    with pytest.raises(httpx2.TransportError):
        ada.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="ada/m")
    assert "a.txt" in hub.files("ada/m")


def test_a_cut_download_is_resumed_by_the_client(hub: Hub, ada: HfApi, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    content = bytes(range(256)) * 4000
    hub.model("ada/m", {"w.safetensors": content})
    hub.fail("GET /storage/", cut="download", after=500_000)
    path = hf_hub_download("ada/m", "w.safetensors", token=ada.token, endpoint=hub.endpoint, cache_dir=tmp_path)
    assert Path(path).read_bytes() == content
    assert [r.range for r in hub.journal.find("GET /storage/")][1].startswith("bytes=")


def test_corrupt_and_truncated_downloads_arrive_as_ordered(hub: Hub):
    hub.model("ada/m", {"w.safetensors": bytes(1000)})
    url = f"{hub.endpoint}/ada/m/resolve/main/w.safetensors"
    hub.fail("GET /storage/", corrupt=-1)
    assert WEB.get(url, follow_redirects=True).content == bytes(999) + b"\xff"
    hub.fail("GET /storage/", truncate=10)
    assert WEB.get(url, follow_redirects=True).content == bytes(990)
    assert WEB.get(url, follow_redirects=True).content == bytes(1000)


def test_something_may_happen_just_before_a_request(hub: Hub, ada: HfApi):
    hub.model("ada/m", {"a.txt": "one"})
    head = ada.model_info("ada/m").sha
    hub.fail("POST .*/commit/", do=lambda: hub.commit("ada/m", {"b.txt": "other"}, author="eve"))
    with pytest.raises(HfHubHTTPError) as error:
        ada.create_commit("ada/m", [CommitOperationAdd("a.txt", b"x")], commit_message="m", parent_commit=head)
    assert status_of(error) == 412
    hub.fail("POST .*/commit/", do=lambda: hub.delete_repo("ada/m"))
    with pytest.raises(RepositoryNotFoundError):
        ada.create_commit("ada/m", [CommitOperationAdd("a.txt", b"x")], commit_message="m")


def test_slow_answers_are_slow(hub: Hub):
    hub.fail("GET /api/models", slow=0.3)
    start = time.monotonic()
    WEB.get(f"{hub.endpoint}/api/models")
    assert time.monotonic() - start >= 0.3


def test_rate_limits_say_how_long_to_wait(hub: Hub, ada: HfApi):
    from tests.hub.faults import Window

    hub.model("ada/m")
    hub.api_window = Window(2, 300)
    answers = [WEB.get(f"{hub.endpoint}/api/models/ada/m") for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 200, 429]
    assert '"api";r=1' in answers[0].headers["RateLimit"]
    hub.api_window, hub.commit_window = None, Window(1, 3600)
    ada.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="ada/m")
    with pytest.raises(HfHubHTTPError, match="repository commits"):
        ada.upload_file(path_or_fileobj=b"y", path_in_repo="a.txt", repo_id="ada/m")


# --- as a program -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_runs_as_a_program_and_takes_orders_over_http(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    command = [sys.executable, "-m", "tests.hub", "--user", "ada:hf_ada", "--model", f"ada/m={tmp_path / 'model'}"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            endpoint = process.stdout.readline().strip()
            belongs_to("hf_ada", endpoint)
            api = HfApi(endpoint=endpoint, token="hf_ada")
            assert api.whoami()["name"] == "ada"
            order = urllib.request.Request(
                f"{endpoint}/-/fail", json.dumps({"pattern": "GET /api/models", "status": 503}).encode()
            )
            urllib.request.urlopen(order)
            assert WEB.get(f"{endpoint}/api/models/ada/m").status_code == 503
            assert api.list_repo_files("ada/m") == [".gitattributes", "config.json"]
            assert any(r["status"] == 503 for r in WEB.get(f"{endpoint}/-/journal").json())
        finally:
            process.terminate()  # else what failed above waits for the program's end
        assert process.wait(10) == 0
