"""The source's own tokenizer as transformers loads it, and what it makes of a chat."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hubbot.errors import Unsupported
from hubbot.model.chat import Chat, Tokens, end_tokens
from hubbot.model.digests import PROBE
from hubbot.model.foreign import foreign
from hubbot.model.tokenizer import read_tokenizer_json

__all__ = [
    "held_tokenizer",
    "load_tokenizer",
    "loading_once",
    "names_of",
    "read_chat",
    "stripping",
    "text_of",
    "token_ids",
    "tokens_of",
]

_MARKS = 16  # special tokens in the probe text


_held: list[dict[Path, PreTrainedTokenizerBase]] = []  # one for each context of `loading_once` that is open


@contextmanager
def loading_once() -> Iterator[None]:
    """Inside, whoever loads a folder's tokenizer is given the same one, which nobody changes: a vocabulary of 128,256 tokens
    takes most of a second to read, a tenth to be told, and its memory is let go of at the end."""
    _held.append(_held[-1] if _held else {})
    try:
        yield
    finally:
        _held.pop()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder. Raises Unsupported where transformers cannot read it."""
    if not _held:
        return _loaded(folder)
    if folder not in _held[-1]:
        held = _held[-1][folder] = _loaded(folder)
        held.get_vocab = held.get_vocab().copy  # the library makes it anew each time
    return _held[-1][folder]


def held_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The one that was loaded inside `loading_once`, if it was."""
    return _held[-1].get(folder) if _held else None


def _loaded(folder: Path) -> PreTrainedTokenizerBase:
    with foreign("transformers", f"read the tokenizer of {folder.name}", then=_mending(folder), kind=Unsupported):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    tokenizer.model_max_length = 2**62  # texts are cut into windows here; no warning about their length
    return tokenizer


def _mending(folder: Path) -> str:
    path = folder / "tokenizer_config.json"
    if path.is_file() and read_tokenizer_json(path).get("auto_map"):
        return (
            "Its tokenizer_config.json asks for Python code of the author's (auto_map), which hubbot never runs. In a copy of the model take "
            "auto_map out and name a tokenizer_class of transformers', such as PreTrainedTokenizerFast beside a tokenizer.json."
        )
    return (
        "tokenizer.json or tokenizer.model with tokenizer_config.json is needed; check that the files are whole and "
        "belong to the model."
    )


_ODD = "Its tokenizer.json is damaged, or made to end whoever reads it; ask the author for another."


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, whole: bool) -> list[int]:
    """A text's tokens. whole: with those that the tokenizer puts around a text. Raises Unsupported where it fails."""
    with foreign("The model's tokenizer", "cut a text into tokens", then=_ODD, kind=Unsupported):
        return [int(token) for token in tokenizer(text, add_special_tokens=whole)["input_ids"]]


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """What tokens say, special ones left out. Raises Unsupported where the tokenizer fails."""
    with foreign("The model's tokenizer", "write tokens as text", then=_ODD, kind=Unsupported):
        return str(tokenizer.decode(tokens, skip_special_tokens=True))


def read_chat(folder: Path, tokenizer: PreTrainedTokenizerBase, prompt: str = "") -> Chat:
    """The source's chat. prompt: a conversation as its chat template writes it."""
    ends = end_tokens(folder, tokenizer)
    probe = _probe(tokenizer, ends)
    return Chat(
        probe=probe,
        prompt=prompt,
        tokens=tokens_of(tokenizer, probe, prompt, ends),
        spaced=tokens_of(tokenizer, _spaced(tokenizer, probe), _spaced(tokenizer, prompt), ends),
    )


def names_of(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Token id -> its text."""
    return {number: token for token, number in tokenizer.get_vocab().items()}


def stripping(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens that take the blanks beside them out of a text."""
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.lstrip or token.rstrip]


def _spaced(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a blank behind every special token."""
    special = sorted({str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} - {""}, key=len)
    return re.sub("|".join(map(re.escape, reversed(special))), r"\g<0> ", text) if special else text


def tokens_of(tokenizer: PreTrainedTokenizerBase, probe: str, prompt: str, ends: Sequence[int]) -> Tokens:
    """What a tokenizer of transformers makes of a chat's texts."""

    def cut(text: str, *, whole: bool = False) -> tuple[int, ...]:
        return tuple(token_ids(tokenizer, text, whole=whole))

    return Tokens(
        text=cut(probe), sequence=cut(probe, whole=True), prompt=cut(prompt) if prompt else (), ends=tuple(ends)
    )


def _probe(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> str:
    """The probe text with special tokens behind it, those that end a text first.

    Letters stand on both sides: what becomes of blanks beside a special token differs, and no template depends on it.
    """
    added = {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    marks = {number: str(token) for number, token in added.items() if not token.single_word}
    marks.pop(tokenizer.unk_token_id, None)
    order = sorted(marks, key=lambda number: (number not in ends, number))
    return PROBE + "".join(f"\nx{marks[number]}y" for number in order[:_MARKS])
