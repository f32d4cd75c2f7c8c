"""What the confined child calls its artefacts is checked before it is hashed and published."""

import hashlib

import pytest

from hubbot.domain import File
from hubbot.errors import UnsafeSource
from hubbot.record.files import hashing, listed


@pytest.fixture
def out(tmp_path):
    (tmp_path / "token").write_text("hf_x")
    out = tmp_path / "out"
    (out / "gguf").mkdir(parents=True)
    (out / "gguf" / "a.gguf").write_bytes(b"GGUF")
    return out


def test_a_file_below_the_output_folder_is_an_artefact(out):
    files = listed([out / "gguf" / "a.gguf"], out)
    with hashing(files, out) as digest:
        (file,) = map(digest, files)
    assert file == File(path="gguf/a.gguf", size=4, sha256=hashlib.sha256(b"GGUF").hexdigest())


@pytest.mark.parametrize("name", ["../token", "gguf/../../token", "link", "folder/token", "gguf", "missing"])
def test_what_lies_elsewhere_is_refused(out, name):
    (out / "link").symlink_to("../token")
    (out / "folder").symlink_to("..")
    with pytest.raises(UnsafeSource, match="no plain file below"):
        listed([out / name], out)


def test_what_the_load_check_puts_in_a_files_place_is_refused(out):
    """It is a confined child's too, and runs while this process hashes."""
    files = listed([out / "gguf" / "a.gguf"], out)
    with hashing(files, out) as digest:
        (out / "gguf" / "a.gguf").write_bytes(b"GGUF and more")
        with pytest.raises(UnsafeSource, match="had 4 bytes and has 13"):
            digest(files[0])
        (out / "gguf" / "a.gguf").unlink()
        (out / "gguf" / "a.gguf").symlink_to("../../token")
        with pytest.raises(UnsafeSource, match="no plain file below"):
            digest(files[0])
