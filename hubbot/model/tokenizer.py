"""Tokenizer files and chat templates: bounded and of the right kind before any library reads them.

Templates are not run here; whoever renders one does it in jinja's sandbox and with a time limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from hubbot.errors import SourceRefused, UnsafeSource
from hubbot.model.normalizer import check_growth
from hubbot.model.strict_json import read_bytes, read_object

__all__ = [
    "LARGEST_TEMPLATE",
    "check_tokenizer",
    "is_tiktoken",
    "mentions_chat_template",
    "read_chat_templates",
    "read_tokenizer_json",
]

_ADDITIONAL = "/additional_chat_templates/*.jinja"  # of the model's folder itself
LARGEST_TEMPLATE = 256 * 2**10  # bytes; the longest in use have 30 KB
_MEGABYTE = 2**20

# JSON objects by name: largest size, most values (a merge is an array of two).
_JSON = {
    "tokenizer.json": (160 * _MEGABYTE, 8_000_000),  # Gemma's has 33 MB
    "tokenizer_config.json": (16 * _MEGABYTE, 400_000),
    "special_tokens_map.json": (_MEGABYTE, 50_000),
    "added_tokens.json": (4 * _MEGABYTE, 200_000),
    "generation_config.json": (_MEGABYTE, 50_000),
    "vocab.json": (64 * _MEGABYTE, 2_000_000),
    "chat_template.json": (_MEGABYTE, 1_000),
}
_LARGEST_MERGES = 64 * _MEGABYTE
_LARGEST_SENTENCEPIECE = 64 * _MEGABYTE
_ENOUGH = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")


def check_tokenizer(files: Mapping[str, Path]) -> None:
    """Check every tokenizer file that is there.

    Raises SourceRefused where there is none, UnsafeSource for a file of the wrong type or size.
    """
    if not any(name in files for name in _ENOUGH):
        msg = f"No tokenizer is here: none of {', '.join(_ENOUGH)}. Without one nothing can be measured; fetch the model whole."
        raise SourceRefused(msg)
    for name in _JSON:
        if name in files:
            _check_content(name, read_tokenizer_json(files[name]), files)
    for name in ("tokenizer.model", "spiece.model"):
        if name in files and not ("tokenizer.json" in files and is_tiktoken(files[name])):
            _check_sentencepiece(files[name])
    if "merges.txt" in files:
        _read_text(files["merges.txt"], _LARGEST_MERGES)


def read_tokenizer_json(path: Path) -> dict[str, Any]:
    """One of the JSON files beside a tokenizer, within its bounds. Raises UnsafeSource."""
    largest, values = _JSON[path.name]
    return read_object(path, largest=largest, most_values=values, constants=True)


def read_chat_templates(files: Mapping[str, Path]) -> dict[str, str]:
    """Name -> template that a conversation is written with, as transformers' tokenizers find them; `default` is the usual one.

    Files of their own come first: chat_template.jinja is `default`, additional_chat_templates/NAME.jinja is NAME. Without
    any of these tokenizer_config.json counts, and where that has none (or null), a processor's chat_template.json.
    Raises UnsafeSource for one past LARGEST_TEMPLATE or of another type.
    """
    named = {"default": files["chat_template.jinja"]} if "chat_template.jinja" in files else {}
    named |= {path.stem: path for name, path in files.items() if PurePosixPath("/", name).match(_ADDITIONAL)}
    if named:
        return {name: _universal(_read_text(path, LARGEST_TEMPLATE)) for name, path in named.items()}
    for name in ("tokenizer_config.json", "chat_template.json"):
        if name in files:
            config = read_tokenizer_json(files[name])
            if (found := config.get("chat_template")) is not None:
                return _templates(found, name)
    return {}


def mentions_chat_template(folder: Path) -> bool:
    """Whether a glance finds one, without reading what it says: a file of its own, or the word in a JSON file."""
    if (folder / "chat_template.jinja").is_file():
        return True
    configs = [path for name in ("tokenizer_config.json", "chat_template.json") if (path := folder / name).is_file()]
    return any(b'"chat_template"' in read_bytes(path, _JSON[path.name][0]) for path in configs)


def _universal(text: str) -> str:
    """Line ends as a file opened for text gives them."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _templates(found: Any, file: str) -> dict[str, str]:
    """One template, which is `default`, or a list of {name, template}."""
    named = {"default": found} if isinstance(found, str) else _named(found)
    if named is None or not all(isinstance(text, str) for text in named.values()):
        msg = f"chat_template of {file} must be a string or a list of named strings."
        raise UnsafeSource(msg)
    for name, text in named.items():
        if len(text.encode("utf-8", "surrogatepass")) > LARGEST_TEMPLATE:
            msg = f"The chat template {ascii(name)[:40]} of {file} has {len(text):,} characters; at most {LARGEST_TEMPLATE:,} bytes are read."
            raise UnsafeSource(msg)
    return named


def _named(found: Any) -> dict[str, Any] | None:
    if not isinstance(found, list) or not all(
        isinstance(item, dict) and {"name", "template"} <= set(item) for item in found
    ):
        return None
    return {str(item["name"]): item["template"] for item in found}


def _check_content(name: str, found: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    if name == "tokenizer.json" and not isinstance(found.get("model"), dict):
        msg = "tokenizer.json has no `model` object, so it is no file of the tokenizers library."
        raise UnsafeSource(msg)
    if name == "tokenizer.json":
        check_growth(found)
        _check_dropout(found["model"])
    if (
        name == "tokenizer_config.json"
        and found.get("auto_map")
        and not {"tokenizer.json", "tokenizer.model"} & files.keys()
    ):
        msg = "The tokenizer needs Python code from the model's repo (auto_map in tokenizer_config.json). hubbot never runs such code; a tokenizer.json is needed."
        raise UnsafeSource(msg)
    if name == "vocab.json" and not all(type(number) is int for number in found.values()):
        msg = "vocab.json must map tokens to whole numbers."
        raise UnsafeSource(msg)


def _check_dropout(model: Mapping[str, Any]) -> None:
    """BPE dropout is for training: merges are left out at random, so that no two readers have the same tokens."""
    if dropout := model.get("dropout"):
        msg = f"model.dropout of tokenizer.json is {ascii(dropout)[:20]}: it cuts the same text otherwise each time, as training alone may want. Set it to null in a copy of the model."
        raise SourceRefused(msg)


def is_tiktoken(path: Path) -> bool:
    """Whether a file is a vocabulary of tiktoken's, as Llama 3's tokenizer.model: a token in base64 and its rank, line by line."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _RANKED.match(file.read(_LONGEST_TOKEN)) is not None


_RANKED = re.compile(rb"[A-Za-z0-9+/]+=* [0-9]+\r?\n")
_LONGEST_TOKEN = 1024  # bytes


def _check_sentencepiece(path: Path) -> None:
    """A SentencePiece model is a protocol buffer whose first field is a list of pieces: it begins with 0x0A."""
    if is_tiktoken(path):
        msg = f"{path.name} is a vocabulary of tiktoken's, and no tokenizer.json lies beside it, which llama.cpp and hubbot read such a tokenizer from. Save the tokenizer with transformers in a copy of the model, or ask the author."
        raise SourceRefused(msg)
    if not read_bytes(path, _LARGEST_SENTENCEPIECE).startswith(b"\x0a"):
        msg = f"{path.name} is no SentencePiece model: it does not begin with a list of pieces. The file is damaged or of another type."
        raise UnsafeSource(msg)


def _read_text(path: Path, largest: int) -> str:
    try:
        return read_bytes(path, largest).decode("utf-8")
    except UnicodeDecodeError:
        msg = f"{path.name} is not UTF-8 text. The file is damaged or of another type."
        raise UnsafeSource(msg) from None
