"""A SentencePiece tokenizer trained on the spot, written so that three readers agree on it.

`tokenizer.model` is for llama.cpp's converter, which takes any SentencePiece vocabulary (and refuses byte-level BPE
vocabularies that it does not know); `tokenizer.json` holds the same pieces as merges for transformers.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

__all__ = ["SPECIAL", "Tokenizer", "train_tokenizer", "write_tokenizer"]

Tokenizer = sentencepiece.SentencePieceProcessor

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}  # ids 0, 1, 2

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}### {{ message['role'] }}\n{{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}### assistant\n{% endif %}"
)

_BYTES = 256
_SPACE = "\u2581"  # SentencePiece's mark for a space


def train_tokenizer(lines: Iterable[str], *, vocabulary: int, space_prefix: bool = True) -> bytes:
    """Train byte-pair pieces with byte fallback; the same lines give the same model.

    space_prefix: put a space before the text, as Llama does and Gemma does not.
    Returns the serialized SentencePiece model.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        byte_fallback=True,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,  # indentation is a word of Python
        add_dummy_prefix=space_prefix,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_tokenizer(model: bytes, folder: Path, *, length: int, space_prefix: bool = True) -> Tokenizer:
    """Write tokenizer.model, tokenizer.json and their configuration for models of `length` tokens of context."""
    pieces = Tokenizer(model_proto=model)
    (folder / "tokenizer.model").write_bytes(model)
    _write_json(folder / "tokenizer.json", _fast(pieces, space_prefix=space_prefix))
    _write_json(folder / "tokenizer_config.json", _configuration(length))
    _write_json(folder / "special_tokens_map.json", SPECIAL)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return pieces


def _configuration(length: int) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        **SPECIAL,
    }


def _fast(pieces: Tokenizer, *, space_prefix: bool) -> dict[str, object]:
    """The tokenizer.json of `tokenizers`: normalize spaces, merge by score, fall back to bytes."""
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if space_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space_prefix else []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(index, text) for index, text in enumerate(SPECIAL.values())],
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, _replace(" ", _SPACE)]},
        "pre_tokenizer": None,
        "post_processor": _post_processor(),
        "decoder": {
            "type": "Sequence",
            "decoders": [_replace(_SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": SPECIAL["unk_token"],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {pieces.id_to_piece(index): index for index in range(pieces.vocab_size())},
            "merges": _merges(pieces),
        },
    }


def _merges(pieces: Tokenizer) -> list[list[str]]:
    """Every way to build a piece from two others, best score first: SentencePiece's own rule of merging."""
    first = len(SPECIAL) + _BYTES
    ids = {pieces.id_to_piece(index): index for index in range(first, pieces.vocab_size())}
    merges: list[tuple[float, int, int, int]] = []
    names = list(ids)
    for name, index in ids.items():
        for cut in range(1, len(name)):
            left, right = ids.get(name[:cut]), ids.get(name[cut:])
            if left is not None and right is not None:
                merges.append((-pieces.get_score(index), index, left, right))
    return [[names[left - first], names[right - first]] for _, _, left, right in sorted(merges)]


def _added(index: int, text: str) -> dict[str, object]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": text, "special": True, **plain}


def _replace(pattern: str, content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def _post_processor() -> dict[str, object]:
    """Put the begin token before every text."""
    bos = SPECIAL["bos_token"]
    begin = {"SpecialToken": {"id": bos, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [1], "tokens": [bos]}},
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
