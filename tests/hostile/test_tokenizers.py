"""Tokenizers that end whoever reads them: a library in Rust panics, and that is no Exception of Python's."""

import json

import pytest
from tokenizers import Tokenizer

from hubbot.confine.limits import Limits
from hubbot.confine.program import Start, _answer
from hubbot.errors import HubbotError, Unsupported
from hubbot.model.foreign import foreign
from tests.hostile import model

ENDLESS = "(a|aa|aaa)+$b"  # Onig gives up on it
TEXT = "a" * 60 + "c"
SPLIT = {"type": "Split", "pattern": {"Regex": ENDLESS}, "behavior": "Isolated", "invert": False}


def panicking():
    """A tokenizer that panics over TEXT."""
    return Tokenizer.from_str(
        json.dumps(model.TOKENIZER | {"version": "1.0", "added_tokens": [], "pre_tokenizer": SPLIT})
    )


def panic(question: str) -> str:
    """A stage."""
    return str(panicking().encode(question).ids)


def test_a_panic_of_a_library_in_rust_is_told_as_a_sentence():
    says = r"cannot read x: PanicException: .*retry-limit-in-match over\. Ask\."
    with pytest.raises(Unsupported, match=says), foreign("tokenizers", "read x", then="Ask.", kind=Unsupported):
        panicking().encode(TEXT)


def test_a_signal_passes_through():
    with pytest.raises(KeyboardInterrupt), foreign("tokenizers", "read x", then="Ask."):
        raise KeyboardInterrupt


def test_a_panic_in_a_confined_process_is_an_answer(tmp_path):
    limits = Limits(memory=2**40, processor=600, file=2**40)
    start = Start(target=f"{__name__}:panic", parent=1, limits=limits, home=tmp_path, writable=(tmp_path,), readable=())
    end, answer = _answer(start, json.dumps(TEXT).encode())
    assert end.error == HubbotError.__name__
    assert "failed with PanicException: Onig" in end.message
    assert answer == b""


@pytest.mark.slow
def test_a_text_that_a_models_tokenizer_panics_over_is_told(tmp_path):
    from hubbot.model.own_tokenizer import load_tokenizer, token_ids

    folder = model.write_model(tmp_path / "model")
    panicking().save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    tokenizer.backend_tokenizer.pre_tokenizer = panicking().pre_tokenizer  # as a class that keeps its file's would
    with pytest.raises(Unsupported, match="The model's tokenizer cannot cut a text into tokens: PanicException"):
        token_ids(tokenizer, TEXT, whole=False)
