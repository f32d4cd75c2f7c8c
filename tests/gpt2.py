"""Byte-level BPE tokenizers, rebuilt from the vocabularies that GGUF files carry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hubbot.llamacpp import conversion, find, gguf

END_OF_TEXT = 50256  # its id, the last one of the vocabulary
_END = "<|endoftext|>"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}  # every digit is a token of its own


def write_gpt2_tokenizer(folder: Path, *, length: int, more: Sequence[str] = ()) -> int:
    """Write tokenizer.json and its configuration, with `more` special tokens; returns the size of the vocabulary."""
    known, merges = _vocabulary()
    tokens = [*known, *more]
    write_byte_level(folder, tokens, merges, special=[tokens.index(_END), *range(len(known), len(tokens))])
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "bos_token": _END,
        "eos_token": _END,
        "unk_token": _END,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration, indent=1), encoding="utf-8")
    return len(tokens)


@cache
def teach_converter() -> None:
    """llama.cpp's converter knows Qwen's pre-tokenizers by what they make of a text with Qwen's vocabulary; here they have GPT-2's."""
    conversion()
    from conversion.base import TextModel
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

    known = TextModel.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        if isinstance(tokenizer, Qwen3_5Tokenizer):
            return "qwen35"
        return "qwen2" if isinstance(tokenizer, Qwen2Tokenizer) else str(known(self, tokenizer))

    TextModel.get_vocab_base_pre = get_vocab_base_pre


def write_byte_level(
    folder: Path, tokens: Sequence[str], merges: Sequence[str], *, special: Sequence[int], cut: Sequence[Any] = (BYTES,)
) -> None:
    """Write tokenizer.json. special: ids of control tokens. cut: pre-tokenizers, one after the other."""
    fast = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(index, tokens[index]) for index in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(cut)} if len(cut) > 1 else cut[0],
        "post_processor": None,
        "decoder": BYTES | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": list(merges),
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(fast, ensure_ascii=False), encoding="utf-8")


def _added(index: int, content: str) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **plain, "special": True}


@cache
def _vocabulary() -> tuple[list[str], list[str]]:
    reader = gguf().GGUFReader(find().source / "models" / "ggml-vocab-gpt-2.gguf")
    return (
        reader.get_field("tokenizer.ggml.tokens").contents(),
        reader.get_field("tokenizer.ggml.merges").contents(),
    )
