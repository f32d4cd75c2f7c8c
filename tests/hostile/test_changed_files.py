"""What was checked is what is published: bytes that change on the disk before, or while, they are sent go nowhere."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hubbot.errors import HubFailed
from hubbot.hub.publish import local_files
from hubbot.hub.publish.publication import publish
from hubbot.hub.publish.repo_release import RepoRelease
from tests.hub import Hub
from tests.hub.models import gguf_release


@pytest.fixture
def release(tmp_path: Path) -> tuple[RepoRelease, Path]:
    """A release whose file of weights is recorded, and that file."""
    made = gguf_release(tmp_path, "Q8_0")
    [weights] = [path for path in made.branches["main"].values() if path.suffix == ".gguf"]
    return replace(made, recorded={weights: hashlib.sha256(weights.read_bytes()).hexdigest()}), weights


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Large files are sent from the disk and hashed on the way."""
    if request.param == "large":
        monkeypatch.setattr(local_files, "_SMALL", 20_000)
        monkeypatch.setattr(local_files, "_HELD", 20_000)
    return str(request.param)


def flip(path: Path) -> None:
    """Another byte, and neither the size nor the time of change tells."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def published(hub: Hub) -> list[str]:
    return [path for path in hub.files("ada/tiny-GGUF") if path != ".gitattributes"]


def test_an_honest_release_goes_through_and_a_large_file_is_read_once(hub: Hub, release, size, monkeypatch):
    read = list[int]()
    genuine = local_files.CheckedFile.read

    def counted(self, amount=-1, /):
        block = genuine(self, amount)
        read.append(len(block))
        return block

    monkeypatch.setattr(local_files.CheckedFile, "read", counted)
    wanted, weights = release
    assert publish(wanted, hub.seen(hub.user("ada")), mode="main").status == "published"
    assert hub.read("ada/tiny-GGUF", weights.name) == weights.read_bytes()
    assert sum(read) == (weights.stat().st_size if size == "large" else 0)


def test_a_byte_that_was_flipped_on_the_disk_is_not_published(hub: Hub, release, size):
    wanted, weights = release
    flip(weights)
    with pytest.raises(HubFailed, match=r"not what was checked|SHA256Mismatch"):  # ours, or the storage's word first
        publish(wanted, hub.seen(hub.user("ada")), mode="main")
    assert published(hub) == []


def test_a_file_that_was_sent_is_known_to_be_another_without_the_storages_word(release, monkeypatch):
    monkeypatch.setattr(local_files, "_SMALL", 20_000)
    wanted, weights = release
    file = local_files.hash_files({"main": {"w": weights}}, wanted.recorded)[weights]
    with local_files.CheckedFile(file) as stream:
        stream.read()
        stream.check(whole=False)
    flip(weights)
    file = local_files.hash_files({"main": {"w": weights}}, wanted.recorded)[weights]
    with local_files.CheckedFile(file) as stream:
        stream.read()
        with pytest.raises(HubFailed, match="not what was checked"):
            stream.check(whole=False)


def test_a_link_in_the_place_of_a_file_is_not_published(hub: Hub, release, size, tmp_path: Path):
    wanted, weights = release
    other = tmp_path / "other"
    weights.rename(other)
    weights.symlink_to(other)
    with pytest.raises(HubFailed, match="symbolic link"):
        publish(wanted, hub.seen(hub.user("ada")), mode="main")
    assert ("model", "ada/tiny-GGUF") not in hub.store.repos


@pytest.mark.parametrize("how", ["flipped", "replaced", "linked"])
@pytest.mark.parametrize("when", ["preupload", "objects/batch", "PUT /storage"])
def test_a_file_that_changes_while_it_is_sent_is_not_published(hub: Hub, release, size, when, how, tmp_path: Path):
    wanted, weights = release
    honest = weights.read_bytes()

    def change() -> None:
        if how == "flipped":
            flip(weights)
            return
        other = tmp_path / "other"
        other.write_bytes(bytes(len(honest)))
        if how == "linked":
            weights.unlink()
            weights.symlink_to(other)
        else:
            other.replace(weights)

    hub.fail(when, do=change)
    seen = hub.seen(hub.user("ada"))
    if size == "small":  # sent from memory, as it was checked
        publish(wanted, seen, mode="main")
        assert hub.read("ada/tiny-GGUF", weights.name) == honest
        return
    with pytest.raises(HubFailed):
        publish(wanted, seen, mode="main")
    assert published(hub) == []
