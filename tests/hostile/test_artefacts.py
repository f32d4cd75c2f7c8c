"""What the confined child calls its artefacts is checked before it is hashed and published."""

import pytest

from hubbot.errors import UnsafeSource
from hubbot.record.files import hashed


@pytest.fixture
def out(tmp_path):
    (tmp_path / "token").write_text("hf_x")
    out = tmp_path / "out"
    (out / "gguf").mkdir(parents=True)
    (out / "gguf" / "a.gguf").write_bytes(b"GGUF")
    return out


def test_a_file_below_the_output_folder_is_an_artefact(out):
    (file,) = hashed([out / "gguf" / "a.gguf"], out)
    assert (file.path, file.size) == ("gguf/a.gguf", 4)


@pytest.mark.parametrize("name", ["../token", "gguf/../../token", "link", "folder/token", "gguf", "missing"])
def test_what_lies_elsewhere_is_refused(out, name):
    (out / "link").symlink_to("../token")
    (out / "folder").symlink_to("..")
    with pytest.raises(UnsafeSource, match="no plain file below"):
        hashed([out / name], out)
