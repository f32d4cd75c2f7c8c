"""`make upgrade`: the pins that it raises, and what it says of the table."""

import shutil

import pytest

from tests.conformance.difference import difference
from tests.conformance.upgrade import PLACES, ROOT, Release, main, pinned, raise_pins

FILES = {file for places in PLACES.values() for file, _ in places}
NEW = Release(version="99.1.0", sha256="f" * 64)


@pytest.fixture
def checkout(tmp_path):
    for file in FILES:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def test_every_place_that_names_a_pin_names_the_new_one(checkout):
    before = {package: pinned(package) for package in PLACES}
    main(lambda _: NEW, checkout)
    assert {package: pinned(package, checkout) for package in PLACES} == dict.fromkeys(PLACES, NEW.version)
    for file in FILES - {"docs/dependencies.md"}:
        text = (checkout / file).read_text()
        assert not any(f"=={version}" in text or f'"{version}"' in text for version in before.values()), file
    assert f'SHA256 = "{NEW.sha256}"' in (checkout / "hubbot/setup.py").read_text()
    assert "~/.cache/hubbot/llama.cpp-99.1.0" in (checkout / "docs/dependencies.md").read_text()


def test_nothing_is_written_where_nothing_is_newer(checkout, capsys):
    main(lambda package: Release(version=pinned(package), sha256="0" * 64), checkout)
    assert {file: (checkout / file).read_text() for file in FILES} == {
        file: (ROOT / file).read_text() for file in FILES
    }
    assert "->" not in capsys.readouterr().out


def test_a_place_that_has_moved_is_told(checkout):
    (checkout / "hubbot/llamacpp.py").write_text("VERSION = '0.3.36'\n")
    with pytest.raises(ValueError, match=r"llamacpp.py has 0 places"):
        raise_pins("llama-cpp-python", NEW, checkout)


def _table(tools, **rows):
    def outcome(kind):
        return {"kind": kind, "told": "it *stopped*" if kind == "failed" else ""}

    named = {
        name: {"outcomes": {column: outcome(kind) for column, kind in cells.items()}} for name, cells in rows.items()
    }
    return {"made": {"tools": tools}, "rows": named}


def test_what_passes_now_and_what_no_longer_does_is_listed_with_the_reason():
    before = _table("transformers 1", A={"GGUF": "passes", "GPTQ": "refused"}, B={"GGUF": "passes"}, Old={})
    now = _table("transformers 2", A={"GGUF": "failed", "GPTQ": "passes"}, B={"GGUF": "passes"}, C={"GGUF": "refused"})
    assert difference(before, now) == "\n".join(
        [
            "# transformers 2", "", "Before: transformers 1. 2 cells of the table passed, 2 do.",
            "", "## Passes now", "", "- A, GPTQ",
            "", "## Passes no longer", "", r"- A, GGUF: failed. it \*stopped\*",
            "", "## New architectures", "", "- C: GGUF refused",
            "", "## Gone", "", "- Old", "",
        ]
    )  # fmt: skip
