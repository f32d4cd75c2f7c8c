"""A crash of llama.cpp is the file's fault only where llama.cpp itself is sound."""

from __future__ import annotations

import pytest

from hubbot.confine.ask import NoAnswer
from hubbot.errors import ToolMissing
from hubbot.formats.gguf import check


@pytest.fixture
def asked(monkeypatch):
    """Models that llama.cpp was asked for; those in `deadly` end its process."""
    seen, deadly = [], set()

    def answered(_program, request):
        seen.append(request["model"].rpartition("/")[2])
        if seen[-1] in deadly:
            raise NoAnswer("ended with code -11", said="GGML_ASSERT(x) failed")
        return {"vocabulary": True}

    monkeypatch.setattr(check, "_answered", answered)
    check._require_sound_build.cache_clear()
    yield seen, deadly
    check._require_sound_build.cache_clear()


def test_a_file_that_alone_ends_the_process_is_at_fault(asked):
    seen, deadly = asked
    deadly.add("bad.gguf")

    assert check.ask_llama_cpp({"model": "bad.gguf"}) == {"error": "llama.cpp crashed: GGML_ASSERT(x) failed"}
    assert check.ask_llama_cpp({"model": "bad.gguf"}) == {"error": "llama.cpp crashed: GGML_ASSERT(x) failed"}
    assert seen == ["bad.gguf", "ggml-vocab-gpt-2.gguf", "bad.gguf"]  # the build is looked at once


def test_a_build_that_dies_on_its_own_file_refuses_no_variant(asked):
    _, deadly = asked
    deadly |= {"good.gguf", "ggml-vocab-gpt-2.gguf"}

    with pytest.raises(ToolMissing, match=r"the build in .* is at fault.*hubbot setup"):
        check.ask_llama_cpp({"model": "good.gguf"})


@pytest.mark.slow
def test_this_build_reads_its_own_file():
    check._require_sound_build.cache_clear()
    check._require_sound_build()
