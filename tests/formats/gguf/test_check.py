"""A crash of llama.cpp is the file's fault only where llama.cpp itself is sound, and what a card does alone never is."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubbot import llamacpp
from hubbot.confine.ask import NoAnswer
from hubbot.errors import ToolMissing
from hubbot.formats.gguf import check


@pytest.fixture
def asked(monkeypatch):
    """Models that llama.cpp was asked for; those in `deadly` end its process."""
    seen, deadly = [], set()

    def answered(_program, request, **_):
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


READ = {"kld": 1e-4, "max_logit_error": 0.01, "generated": "a", "chat_template": None, "continuations": []}
TOKENS = {"text": [1], "sequence": [1], "prompt": [], "ends": [2]}


@pytest.fixture
def on_card(monkeypatch):
    """What llama.cpp answers by where it reads (`cpu`, `card`), and where it was asked."""
    answers, places = {"cpu": READ | {"tokens": TOKENS}}, []

    def answered(_program, request, **_):
        place = "cpu" if request["card"] is None else "card"
        places.append((place, request["card"]))
        answer = answers[place]
        if isinstance(answer, NoAnswer):
            raise answer
        return answer

    monkeypatch.setattr(check, "_answered", answered)
    monkeypatch.setattr(check, "sees_cards", lambda: True)
    return answers, places


def read_on(device):
    return check.read([Path("model.gguf")], None, device=device)


def test_a_file_is_read_on_the_card_alone_where_that_goes_well(on_card):
    answers, places = on_card
    answers["card"] = answers["cpu"]
    reading = read_on("cuda:3")
    assert reading.check.passed
    assert reading.check.runtime.endswith("CUDA)")
    assert places == [("card", 3)]


@pytest.mark.parametrize(
    "failed", [{"error": "cannot load the file: out of memory"}, NoAnswer("ended", said="no kernel")]
)
def test_what_a_card_cannot_do_is_done_on_the_cpu(failed, on_card, capsys):
    answers, places = on_card
    answers["card"] = failed
    reading = read_on("cuda")
    assert reading.check.passed
    assert "CUDA" not in reading.check.runtime
    assert reading.notes == ()
    assert places == [("card", 0), ("cpu", None)]
    assert "was read on the CPU" in capsys.readouterr().err


def test_a_build_that_sees_no_card_is_warned_of_once_and_left(monkeypatch, tmp_path, capsys):
    """The genuine loader, given a library that is none."""
    backend = tmp_path / "cuda" / "libggml-cuda.so"
    backend.parent.mkdir()
    backend.write_text("not a library")
    (tmp_path / "build").symlink_to(llamacpp.place() / "build")
    (tmp_path / "source").symlink_to(llamacpp.place() / "source")
    (tmp_path / "bindings").symlink_to(llamacpp.place() / "bindings")
    places = []

    def answered(_program, request, **_):
        places.append(request["card"])
        return READ | {"tokens": TOKENS}

    monkeypatch.setattr(check, "_answered", answered)
    monkeypatch.setenv("HUBBOT_LLAMA_CPP", str(tmp_path))
    check._asked_for_cards.cache_clear()
    assert [read_on("cuda").check.passed for _ in range(3)] == [True] * 3
    check._asked_for_cards.cache_clear()
    assert places == [None] * 3
    warned = capsys.readouterr().err
    assert warned.count("GGUF files are read on the CPU, since llama.cpp sees no card") == 1
    assert "libggml-cuda.so" in warned


def test_a_card_that_computes_something_else_is_told_of(on_card):
    answers, _ = on_card
    answers["card"] = answers["cpu"] | {"kld": 0.5}
    reading = read_on("cuda")
    assert reading.check.passed
    assert reading.check.kld == 1e-4
    [note] = reading.notes
    assert "On a GPU" in note
    assert "0.5 nats" in note


def test_a_file_that_fails_on_both_is_the_cpus_to_judge(on_card):
    answers, _ = on_card
    answers["card"] = {"error": "out of memory"}
    answers["cpu"] = {"error": "wrong magic"}
    reading = read_on("cuda")
    assert not reading.check.loaded
    assert reading.check.error == "wrong magic"


@pytest.mark.slow
def test_this_build_reads_its_own_file():
    check._require_sound_build.cache_clear()
    check._require_sound_build()
