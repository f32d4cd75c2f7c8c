"""Files are called as their model is, but for what a shell, a folder or a system takes for something else."""

from __future__ import annotations

import pytest

from hubbot.formats.gguf.naming import file_stem


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("Qwen3-8B", "Qwen3-8B"),
        ("-dash", "dash"),
        ("..dots..", "dots.."),
        ("a\\b", "a-b"),
        ("a\nb", "a-b"),
        ("ünï-模型 v1", "ünï-模型 v1"),
        ("--", "model"),
    ],
)
def test_a_files_name_is_no_option_is_not_hidden_and_has_no_separator(name, stem):
    assert file_stem(name) == stem
