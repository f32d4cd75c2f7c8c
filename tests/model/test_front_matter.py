"""Of a card's front matter the licence is read strictly; what only adorns it stops no model."""

import pytest

from hubbot.errors import UnsafeSource
from hubbot.model.front_matter import parse_front_matter, read_front_matter


def read(yaml):
    return parse_front_matter(f"---\n{yaml}\n---\n# A model\n")


@pytest.mark.parametrize(
    ("yaml", "languages"),
    [
        ("language: [en, no]", ("en", "no")),
        ("language: no", ("no",)),
        ("language:\n- en\n-\n- 3", ("en",)),
        ("language: English, French & German!", ()),
        ("language: {en: yes}", ()),
        ("language:", ()),
    ],
)
def test_languages_that_are_none_are_passed_over(yaml, languages):
    found = read(f"license: mit\n{yaml}")
    assert (found.license, found.language) == ("mit", languages)


def test_a_task_and_tags_of_other_types_are_passed_over():
    found = read("license: mit\npipeline_tag: [{a: 1}, text-generation]\ntags: one\nbase_model: [a/b, null, 3]")
    assert (found.pipeline_tag, found.tags, found.base_model) == ("text-generation", ("one",), ("a/b",))


@pytest.mark.parametrize("yaml", ["license: MIT License", "license: [mit, 3]", "license: other\nlicense_name: 12"])
def test_a_licence_is_not_guessed_at(yaml):
    with pytest.raises(UnsafeSource, match="license"):
        read(yaml)


def test_empty_lines_before_the_front_matter_are_passed_over_as_on_the_hub():
    assert parse_front_matter("\ufeff\n  \n---\nlicense: mit\n---\n").license == "mit"
    assert parse_front_matter("# A model\n---\nlicense: mit\n---\n").license is None


def test_the_licence_is_read_above_a_text_that_is_no_utf_8(tmp_path):
    path = tmp_path / "README.md"
    path.write_bytes(b"---\nlicense: mit\n---\n# J\xfcrgen\n")
    assert read_front_matter(path).license == "mit"
    for data in (b"---\nlicense: mit\nby: J\xfcrgen\n---\n", b"# J\xfcrgen\n"):
        path.write_bytes(data)
        with pytest.raises(UnsafeSource, match="not UTF-8 text"):
            read_front_matter(path)
