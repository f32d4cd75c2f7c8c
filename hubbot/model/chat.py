"""What a conversation with a model runs on besides its weights: the tokens that end a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from hubbot.model.config import read_values
from hubbot.model.strict_json import read_object

__all__ = ["end_tokens"]

_LARGEST = 2**20  # bytes of generation_config.json


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
