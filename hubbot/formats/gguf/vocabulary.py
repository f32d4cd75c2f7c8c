"""What the source's tokenizer knows and llama.cpp's converter does not look for: added tokens, a blank before texts.

The converter looks for added tokens in tokenizer_config.json and added_tokens.json; transformers 5 writes them into tokenizer.json
alone. llama.cpp would read such a token letter by letter, in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    found = _with_added(model.metadata, tokenizer, pieces)
    if pieces:
        _refuse_other_texts(found[f"{_KEY}tokens"].value, tokenizer)
        found |= _blank(model.metadata, tokenizer)
    return replace(model, metadata=found)


def _refuse_other_texts(tokens: Sequence[bytes | str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise Unsupported for a token that tokenizer.model calls otherwise than the source's tokenizer, however seldom it is used."""
    known: dict[int, set[str]] = {}
    for text, number in tokenizer.get_vocab().items():
        known.setdefault(number, set()).update((text, text.replace(_BLANK, " ")))
    other = next(
        (number for number, token in enumerate(tokens) if _text(token) not in known.get(number, (_text(token),))), None
    )
    if other is not None:
        msg = (
            f"llama.cpp's converter finds {_text(tokens[other])!a} for token {other:,}, which the tokenizer calls {min(known[other])!a}: "
            "tokenizer.model is not that of tokenizer.json. Take the one that is stale out of a copy of the model, or leave the "
            "GGUF types out of --variants."
        )
        raise Unsupported(msg)


def _with_added(metadata: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, pieces: bool) -> dict[str, Any]:
    """Every added token under its id, as one that texts are cut at; an id that is no token's does not keep its text.

    pieces: whether the vocabulary is SentencePiece's, whose blanks llama.cpp looks for as blanks in added tokens.
    """
    names = [name for name in ("tokens", "token_type", "scores") if f"{_KEY}{name}" in metadata]
    lists = {name: list(metadata[_KEY + name].value) for name in names}
    tokens, kinds = [_text(token) for token in lists["tokens"]], lists["token_type"]
    place = {text: number for number, text in enumerate(tokens)}
    meant = set(tokenizer.get_vocab().values())
    for number, token in tokenizer.added_tokens_decoder.items():
        written = str(token)
        text = written.replace(_BLANK, " ") if pieces else written
        known = number < len(tokens) and kinds[number] not in (_NORMAL, _UNUSED)
        if number >= len(tokens) or (known and (not pieces or tokens[number] in (written, text))):
            continue
        for other in {place.get(written, number), place.get(text, number)} - {number} - meant:
            lists["tokens"][other], kinds[other] = f"[PAD{other}]".encode(), _UNUSED
        lists["tokens"][number] = text.encode()
        kinds[number] = _CONTROL if token.special else _USER_DEFINED
        if "scores" in lists:
            lists["scores"][number] = _UNTOLD
    return {**metadata, **{_KEY + name: replace(metadata[_KEY + name], value=lists[name]) for name in names}}


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
