"""Of a card's front matter the licence is read strictly; what only adorns it stops no model."""

import pytest

from hubbot.errors import UnsafeSource
from hubbot.model.front_matter import parse_front_matter


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
