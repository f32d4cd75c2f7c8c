"""A SentencePiece model made of a tokenizer.json, for llama.cpp's converter where the source has none.

Llama's, Gemma's, Phi 3's and Mistral's vocabularies are SentencePiece's. transformers 5 saves them as tokenizer.json alone, from
which the converter reads no order of merges, or nothing at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hubbot.model.tokenizer import is_tiktoken, read_tokenizer_json

__all__ = ["sentencepiece_model"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # SentencePiece's types of pieces
_BPE = 2  # of its kinds of models
_FALLING_BACK = re.compile(rb'"byte_fallback"\s*:\s*true')  # seen without parsing megabytes
_A_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NEVER_MERGED = -1e9  # a score below those of all merges


def sentencepiece_model(folder: Path) -> bytes | None:
    """The model that a folder's tokenizer.json says: pairs merged in order, bytes for what is unknown.

    None where the folder has its own, or tokenizer.json is of another kind, such as byte-level BPE.
    """
    path = folder / "tokenizer.json"
    own = folder / "tokenizer.model"
    if (own.exists() and not is_tiktoken(own)) or not path.is_file():
        return None
    if not _FALLING_BACK.search(path.read_bytes()):
        return None
    found = read_tokenizer_json(path)
    bpe = found["model"]
    if bpe.get("type") != "BPE" or not bpe.get("byte_fallback") or not isinstance(bpe.get("vocab"), dict):
        return None
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = _BPE, True
    model.normalizer_spec.name, model.normalizer_spec.remove_extra_whitespaces = "identity", False
    for piece, score, kind in _pieces(bpe, found.get("added_tokens") or []):
        model.pieces.add(piece=piece, score=score, type=kind)
    return bytes(model.SerializeToString())


def _pieces(bpe: Mapping[str, Any], added: list[Mapping[str, Any]]) -> Iterator[tuple[str, float, int]]:
    """Text, score and type of every id of the vocabulary, in order; ids without a token are unused.

    A score is minus the rank of the first merge that comes to the piece, as SentencePiece's trainer gives them.
    """
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(bpe.get("merges") or []):
        ranks.setdefault("".join(pair.split(" ", 1) if isinstance(pair, str) else pair), rank)
    special = {token["id"]: _CONTROL if token.get("special") else _USER_DEFINED for token in added}
    text_of = {number: text for text, number in bpe["vocab"].items()}
    for number in range(max(text_of, default=-1) + 1):
        text = text_of.get(number)
        if text is None:
            yield f"[PAD{number}]", 0.0, _UNUSED
        elif text == bpe.get("unk_token"):
            yield text, 0.0, _UNKNOWN
        else:
            kind = _BYTE if _A_BYTE.fullmatch(text) else special.get(number, _NORMAL)
            yield text, -float(ranks[text]) if text in ranks else _NEVER_MERGED, kind
