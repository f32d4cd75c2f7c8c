"""What a token may do, and what target repos hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubbot.doctor.finding import Status
from hubbot.doctor.view import rights_findings
from hubbot.errors import TokenRefused
from hubbot.hub.publish.current_release import read_current, read_record, read_text
from hubbot.hub.publish.publication import publish
from hubbot.hub.rights import token_rights
from tests.hub import Hub
from tests.hub.models import gguf_release

PLACES = ("ada", "labs", "guests", "others", "others/m")


def rights_of(hub: Hub, **options) -> dict[str, tuple[bool, bool]]:
    token = hub.user("ada", orgs={"labs": "write", "guests": "read"}, **options)
    found = token_rights(hub.seen(token), PLACES)
    return {name: (rights.create_and_write, rights.pull_requests) for name, rights in found.namespaces.items()}


def test_a_write_token_writes_where_its_account_may_and_proposes_elsewhere(hub: Hub):
    assert rights_of(hub) == {
        "ada": (True, True),
        "labs": (True, True),
        "guests": (False, True),
        "others": (False, True),
        "others/m": (False, True),
    }


def test_a_read_token_does_neither(hub: Hub):
    assert set(rights_of(hub, scope="read").values()) == {(False, False)}


def test_a_fine_grained_token_does_what_it_lists(hub: Hub):
    listed = {"labs": ("repo.write", "repo.content.read"), "others/m": ("discussion.write",)}
    found = rights_of(hub, scope="fineGrained", permissions=listed)
    assert found["labs"] == (True, True)
    assert found["others/m"] == (False, True)
    assert found["ada"] == found["others"] == (False, False)


def test_what_the_token_may_do_too_much_is_said(hub: Hub):
    wide = token_rights(hub.seen(hub.user("ada")), ["ada"])
    assert "fine-grained" in wide.too_much[0]
    listed = {"ada": ("repo.write",), "work": ("repo.write",)}
    fine = token_rights(hub.seen(hub.user("ada", scope="fineGrained", permissions=listed)), ["ada"])
    assert fine.too_much == ("write access to work",)


@pytest.mark.parametrize(
    ("permissions", "mode", "status", "says"),
    [
        ({"labs": ("repo.write",)}, "main", Status.OK, ""),
        ({"labs": ("repo.write",)}, "pr", Status.OK, ""),
        ({"labs": ("discussion.write",)}, "main", Status.FAIL, "needs repo.write on labs"),
        ({"labs": ("discussion.write",)}, "pr", Status.WARN, "grant repo.write on labs"),
        ({"labs": ("repo.content.read",)}, "pr", Status.FAIL, "needs discussion.write on labs"),
        ({"work": ("repo.write",)}, "main", Status.FAIL, "needs repo.write on labs"),
        ({"labs": ("repo.content.read",)}, "none", Status.OK, ""),
    ],
)
def test_the_doctor_names_the_scopes_that_the_way_of_publishing_lacks(hub: Hub, permissions, mode, status, says):
    token = hub.user("ada", orgs={"labs": "write"}, scope="fineGrained", permissions=permissions)
    found = next(rights_findings(hub.seen(token), ["labs"], mode=mode))
    assert found.status is status
    assert says in found.remedy
    assert bool(found.remedy) == bool(says)


@pytest.mark.parametrize("token", ["", "hf_wrongwrongwrong"])
def test_no_token_and_a_wrong_one_are_refused_without_being_shown(hub: Hub, token: str):
    with pytest.raises(TokenRefused, match="HF_TOKEN") as error:
        token_rights(hub.seen(token), ["ada"])
    assert "hf_wrong" not in str(error.value)


def test_a_target_repo_is_read_back(hub: Hub, tmp_path: Path):
    token = hub.user("ada")
    seen = hub.seen(token)
    assert read_current("ada/tiny-GGUF", seen, mode="main") is None
    assert read_record("ada/tiny-GGUF", seen) is None
    release = gguf_release(tmp_path / "a", "Q8_0")
    publish(release, seen, mode="main")
    found = read_current("ada/tiny-GGUF", seen, mode="main")
    assert found.record.variants[0].name == "Q8_0"
    assert found.card == (tmp_path / "a" / "README.md").read_text()
    publish(gguf_release(tmp_path / "b", "Q8_0", seed=1), seen, mode="pr")
    hub.commit("ada/tiny-GGUF", {"README.md": "# edited in review"}, revision="refs/pr/1")
    waiting = read_current("ada/tiny-GGUF", seen, mode="pr")
    assert (waiting.revision, waiting.card) == ("refs/pr/1", "# edited in review")
    assert read_current("ada/tiny-GGUF", seen, mode="main") == found
    assert read_text("ada/tiny-GGUF", "nothing.md", seen) is None


def test_a_record_that_cannot_be_read_counts_as_none(hub: Hub):
    hub.model("ada/m", {"hubbot.json": '{"schema": 99}'})
    assert read_record("ada/m", hub.seen()) is None
