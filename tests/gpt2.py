"""GPT-2's byte-level tokenizer, rebuilt from the vocabulary file that llama.cpp's tree carries for its own tests."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from hubbot.llamacpp import find, gguf

_END = "<|endoftext|>"


def write_gpt2_tokenizer(folder: Path, *, length: int) -> int:
    """Write tokenizer.json and its configuration; returns the size of the vocabulary (50257)."""
    tokens, merges = _vocabulary()
    fast = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": tokens.index(_END),
                "content": _END,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "bos_token": _END,
        "eos_token": _END,
        "unk_token": _END,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(fast, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration, indent=1), encoding="utf-8")
    return len(tokens)


@cache
def _vocabulary() -> tuple[list[str], list[str]]:
    reader = gguf().GGUFReader(find().source / "models" / "ggml-vocab-gpt-2.gguf")
    return (
        reader.get_field("tokenizer.ggml.tokens").contents(),
        reader.get_field("tokenizer.ggml.merges").contents(),
    )
