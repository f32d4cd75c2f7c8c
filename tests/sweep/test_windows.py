"""Windows: one length, no padding, every token scored once, no text both calibrated on and evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hubbot.errors import BadText, Unsupported
from hubbot.sweep.windows import Windows, calibration_windows, conversation_windows, evaluation_windows, overlap


class Letters:
    """A tokenizer of letters: token 10 + its place in the alphabet; 1 begins a text where asked for."""

    eos_token_id = 2

    def __init__(self, bos: int | None = 1) -> None:
        self.bos_token_id = bos

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [10 + ord(letter) - ord("a") for letter in text if letter.isalpha()]
        return {"input_ids": [self.bos_token_id, *ids] if add_special_tokens and self.bos_token_id else ids}


def write(path: Path, *documents: str) -> Path:
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return path


ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def evaluate(text: Path, tokenizer: Letters, **changes: object) -> Windows:
    values: dict[str, Any] = {"length": 6, "stride": None, "limit": None, "vocab": 100, **changes}
    return evaluation_windows(text, tokenizer, **values)


def test_windows_begin_with_the_token_that_the_tokenizer_puts_before_text(tmp_path: Path) -> None:
    found = evaluate(write(tmp_path / "t", ALPHABET), Letters())
    assert found.tokens[:, 0].tolist() == [1] * 5
    assert found.tokens[:, 1:].flatten().tolist() == list(range(10, 35)), "the rest that fills no window is left out"
    assert found.first_target == (1,) * 5


def test_without_such_a_token_the_first_of_each_window_is_context_only(tmp_path: Path) -> None:
    found = evaluate(write(tmp_path / "t", ALPHABET), Letters(bos=None))
    assert found.tokens.flatten().tolist() == list(range(10, 34))
    assert found.first_target == (1,) * 4


def test_with_a_stride_only_the_last_tokens_of_later_windows_count(tmp_path: Path) -> None:
    found = evaluate(write(tmp_path / "t", ALPHABET), Letters(bos=None), stride=2)
    assert found.tokens[1].tolist() == [12, 13, 14, 15, 16, 17]
    assert found.first_target == (1, *[4] * 10)
    scored = [int(t) for row, first in zip(found.tokens, found.first_target, strict=True) for t in row[first:]]
    assert scored == list(range(11, 36)), "every token once"


def test_documents_are_joined_and_windows_can_be_limited(tmp_path: Path) -> None:
    found = evaluate(write(tmp_path / "t", "abc", "def", "ghijkl"), Letters(bos=None), limit=1)
    assert found.tokens.tolist() == [[10, 11, 12, 13, 14, 15]]


def test_too_short_a_text_says_what_was_found_and_needed(tmp_path: Path) -> None:
    with pytest.raises(BadText, match=r"evaluation text t has 3 tokens; 5 are needed"):
        evaluate(write(tmp_path / "t", "abc"), Letters())
    with pytest.raises(BadText, match=r"calibration text t has 4 tokens; 50 are needed"):
        calibration_windows(write(tmp_path / "t", "abc"), Letters(), samples=10, length=6, seed=0, vocab=99)


def test_a_token_outside_the_embedding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="token 35, but the model's embedding has only 30 rows"):
        evaluate(write(tmp_path / "t", ALPHABET), Letters(), vocab=30)


def test_calibration_windows_follow_the_seed_and_do_not_overlap(tmp_path: Path) -> None:
    text = write(tmp_path / "t", *[ALPHABET] * 20)
    first, again, other = (
        calibration_windows(text, Letters(), samples=20, length=9, seed=seed, vocab=99) for seed in (0, 0, 1)
    )
    assert torch.equal(first.tokens, again.tokens)
    assert first.sha256 == again.sha256 != other.sha256
    assert first.tokens.shape == (20, 9)
    assert (first.tokens[:, 0] == 1).all()
    assert (first.tokens == 2).any(), "documents are set apart"


def random_windows(count: int, length: int, seed: int) -> Windows:
    tokens = torch.randint(0, 1000, (count, length), generator=torch.Generator().manual_seed(seed))
    return Windows(tokens=tokens, first_target=(1,) * count)


def test_calibration_windows_that_stand_in_the_evaluation_text_are_found() -> None:
    evaluation = random_windows(20, 128, seed=0)
    assert overlap(random_windows(50, 128, seed=1), evaluation) == 0
    stolen = random_windows(50, 128, seed=1).tokens
    stolen[7, 20:120] = evaluation.tokens[3, 5:105]
    stolen[9, 60:100] = evaluation.tokens[4, 60:100]  # 40 tokens: a shared phrase, not a shared text
    assert overlap(Windows(tokens=stolen, first_target=(1,) * 50), evaluation) == 1


def test_every_window_of_conversations_begins_with_one_and_the_rest_of_the_last_is_left_out() -> None:
    spoken = ["abcd", "efghij", "klmnop", "qr"]
    given: dict[str, Any] = {"name": "chats", "limit": 9, "vocab": 100}
    found = conversation_windows(spoken, Letters(), length=6, **given)
    assert [row.tolist() for row in found.tokens] == [[10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]]
    assert found.first_target == (1, 1)
    assert conversation_windows(spoken, Letters(), length=6, **{**given, "limit": 1}).count == 1
    with pytest.raises(BadText, match="conversations of chats come to 18 tokens; 19 are needed"):
        conversation_windows(spoken, Letters(), length=19, **given)
