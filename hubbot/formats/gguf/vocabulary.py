"""What the source's tokenizer knows and llama.cpp's converter does not look for: added tokens, a blank before texts.

The converter looks for added tokens in tokenizer_config.json and added_tokens.json; transformers 5 writes them into tokenizer.json
alone. llama.cpp would read such a token letter by letter, in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from hubbot import llamacpp
from hubbot.errors import Unsupported
from hubbot.formats.gguf.converter import Converted
from hubbot.model.own_tokenizer import token_ids

__all__ = ["with_whole_vocabulary"]

_KEY = "tokenizer.ggml."
_SPACE = f"{_KEY}add_space_prefix"  # llama.cpp takes true where it is absent
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # gguf's TokenType
_UNTOLD = -1000.0  # the converter's score for added tokens
_BLANK = "\u2581"  # SentencePiece's


def with_whole_vocabulary(model: Converted, tokenizer: PreTrainedTokenizerBase) -> Converted:
    """The converted model with all that is known of the source's tokenizer. Raises Unsupported where the two call tokens otherwise."""
    kind = model.metadata.get(f"{_KEY}model")
    if kind is None:
        return model
    pieces = kind.value == "llama"  # SentencePiece's
    vocabulary = tokenizer.get_vocab()
    found = _with_added(model.metadata, tokenizer, set(vocabulary.values()), pieces)
    if pieces:
        _refuse_other_texts([_text(token) for token in found[f"{_KEY}tokens"].value], vocabulary)
        found |= _blank(model.metadata, tokenizer)
    return replace(model, metadata=found)


def _refuse_other_texts(tokens: Sequence[str], vocabulary: Mapping[str, int]) -> None:
    """Raise Unsupported for a token that tokenizer.model calls otherwise than the source's tokenizer, however seldom it is used."""
    apart = [(number, text) for text, number in vocabulary.items() if number < len(tokens) and tokens[number] != text]
    for number, text in apart:
        if tokens[number] == text.replace(_BLANK, " ") or vocabulary.get(tokens[number]) == number:
            continue  # one id may have two texts: a piece, and the added token in its place
        msg = (
            f"llama.cpp's converter finds {tokens[number]!a} for token {number:,}, which the tokenizer calls {text!a}: "
            "tokenizer.model is not that of tokenizer.json. Take the one that is stale out of a copy of the model, or leave the "
            "GGUF types out of --variants."
        )
        raise Unsupported(msg)


def _with_added(
    metadata: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, meant: Set[int], pieces: bool
) -> dict[str, Any]:
    """Every added token under its id, as one that texts are cut at; an id that is no token's does not keep its text.

    meant: ids of the source's tokens. pieces: whether the vocabulary is SentencePiece's, whose blanks llama.cpp looks for as
    blanks in added tokens.
    """
    names = [name for name in ("tokens", "token_type", "scores") if f"{_KEY}{name}" in metadata]
    lists = {name: list(metadata[_KEY + name].value) for name in names}
    tokens, kinds = lists["tokens"], lists["token_type"]
    lost = {
        number: token
        for number, token in tokenizer.added_tokens_decoder.items()
        if number < len(tokens) and _is_lost(str(token), _text(tokens[number]), kinds[number], pieces)
    }
    place = {_text(token): number for number, token in enumerate(tokens)} if lost else {}
    for number, token in lost.items():
        text = _written(str(token), pieces)
        for other in {place.get(str(token), number), place.get(text, number)} - {number} - meant:
            tokens[other], kinds[other] = f"[PAD{other}]".encode(), _UNUSED
        tokens[number], kinds[number] = text.encode(), _CONTROL if token.special else _USER_DEFINED
        if "scores" in lists:
            lists["scores"][number] = _UNTOLD
    return {**metadata, **{_KEY + name: replace(metadata[_KEY + name], value=lists[name]) for name in names}}


def _is_lost(token: str, text: str, kind: int, pieces: bool) -> bool:
    """Whether llama.cpp would not find an added token in a text: as a piece like any other, or under another name."""
    return kind in (_NORMAL, _UNUSED) or (pieces and text not in (token, _written(token, pieces)))


def _written(token: str, pieces: bool) -> str:
    return token.replace(_BLANK, " ") if pieces else token


def _text(token: bytes | str) -> str:
    return token if isinstance(token, str) else token.decode("utf-8", "replace")


def _blank(metadata: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The key that keeps a blank from being put before texts, or has it put there, where llama.cpp would do otherwise."""
    llamacpp.gguf()
    from gguf.gguf_writer import GGUFValue, GGUFValueType

    first = token_ids(tokenizer, "x", whole=False)[:1]
    source = bool(first) and str(tokenizer.convert_ids_to_tokens(first)[0]).startswith(_BLANK)
    if source == (metadata[_SPACE].value if _SPACE in metadata else True):
        return {}
    return {_SPACE: GGUFValue(source, GGUFValueType.BOOL)}
