"""What a conversation with a model runs on besides its weights: the tokens that a text becomes, and those that end one.

The source's own tokenizer says it for the source, each runtime for its artefact, over the same texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from hubbot.model.config import read_values
from hubbot.model.strict_json import read_object

__all__ = ["Chat", "Tokens", "differences", "end_tokens", "settled", "surroundings"]

_LARGEST = 2**20  # bytes of generation_config.json


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What one reader makes of a chat's texts, as token ids."""

    text: tuple[int, ...]  # of the probe text, nothing added
    sequence: tuple[int, ...]  # of the same, with what goes before and after every text
    prompt: tuple[int, ...]  # of a conversation as the chat template writes it; empty without one
    ends: tuple[int, ...]  # that end a generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """The texts that every reader is given, and what the source makes of them."""

    probe: str
    prompt: str  # empty where no template writes one
    tokens: Tokens
    spaced: Tokens  # of the same texts with a blank behind every special token


class _Tokenizer(Protocol):
    @property
    def eos_token_id(self) -> int | None: ...


def end_tokens(folder: Path, tokenizer: _Tokenizer) -> tuple[int, ...]:
    """Every token that config.json, generation_config.json or the tokenizer calls an end of text, in order.

    Files are believed, not the defaults of a configuration class: Llama's is 2, whatever token that may be.
    """
    config = read_values(folder / "config.json")
    path = folder / "generation_config.json"
    generation = read_object(path, largest=_LARGEST, constants=True) if path.is_file() else {}
    text = config.get("text_config")
    places: Iterable[Mapping[str, Any]] = (config, text if isinstance(text, dict) else {}, generation)
    named = [tokenizer.eos_token_id, *(token for place in places for token in _tokens(place.get("eos_token_id")))]
    return tuple(sorted({token for token in named if type(token) is int and token >= 0}))


def _tokens(value: object) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def surroundings(tokens: Tokens) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is put before every text, and what behind it. Neither, where the text itself is cut otherwise then."""
    text, sequence = tokens.text, tokens.sequence
    for start in range(len(sequence) - len(text) + 1):
        if sequence[start : start + len(text)] == text:
            return sequence[:start], sequence[start + len(text) :]
    return (), ()


def settled(chat: Chat, runtime: Tokens) -> tuple[Tokens, bool]:
    """The runtime's tokens as the source's where they differ in a blank behind special tokens alone, and whether any did.

    llama.cpp puts one there for every SentencePiece vocabulary that begins texts with a blank. So did
    transformers' older readers (`prepend_scheme: always`); models of both kinds are published and used with it.
    """
    ours, spaced = chat.tokens, chat.spaced
    changes = {
        name: getattr(ours, name)
        for name in ("text", "sequence", "prompt")
        if getattr(runtime, name) == getattr(spaced, name) != getattr(ours, name)
    }
    return replace(runtime, **changes), bool(changes)


def differences(source: Tokens, runtime: Tokens, names: Mapping[int, str]) -> tuple[str, ...]:
    """A sentence for everything in which a runtime's chat is not the source's. names: token id -> its text."""
    texts = {
        "a text": (source.text, runtime.text),
        "a text with the tokens before and after it": (source.sequence, runtime.sequence),
        "a conversation of the chat template": (source.prompt, runtime.prompt),
    }
    found = [_parting(what, ours, theirs, names) for what, (ours, theirs) in texts.items() if ours != theirs][:1]
    if missing := sorted(set(source.ends) - set(runtime.ends)):
        shown = ", ".join(_named(token, names) for token in missing)
        found.append(f"its runtime does not end a text at {shown}, where the source ends one")
    return tuple(found)


def _parting(what: str, ours: Sequence[int], theirs: Sequence[int], names: Mapping[int, str]) -> str:
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    seen, wanted = (_named(tokens[place], names) if place < len(tokens) else "the end" for tokens in (theirs, ours))
    return f"its runtime cuts {what} into other tokens than the source: in place {place} it has {seen}, the source {wanted}"


def _named(token: int, names: Mapping[int, str]) -> str:
    return f"{token} {names[token]!a}" if token in names else str(token)
