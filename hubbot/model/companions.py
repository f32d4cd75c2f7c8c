"""The files beside the weights: what transformers, llama.cpp's converter and sentence-transformers look for.

One list for all: what is fetched, what a variant's folder carries, what makes it another model when it changes.
"""

from __future__ import annotations

import fnmatch

__all__ = ["is_carried", "is_fetched", "is_licence"]

_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*")

# Paths in the model's folder; a star stays within a name. These go unchanged into every quantized folder.
_CARRIED = (
    *"generation_config.json tokenizer.json tokenizer_config.json tokenizer.model tokenizer.model.v* tokenizer.jsonl".split(),
    *"special_tokens_map.json added_tokens.json vocab.json vocab.txt vocab.bpe merges.txt".split(),
    *"spiece.model sentencepiece.bpe.model *.tiktoken tiktoken.model tekken.json rwkv_vocab_*.txt".split(),
    *"chat_template.jinja chat_template.json additional_chat_templates/*.jinja".split(),
    *"preprocessor_config.json processor_config.json video_preprocessor_config.json".split(),
    # sentence-transformers: modules.json names the folders, 1_Pooling and the like
    *"modules.json config_sentence_transformers.json sentence_bert_config.json".split(),
    *"[0-9]*_*/config.json [0-9]*_*/model.safetensors".split(),
    *_LICENCES,
)
_READ = ("config.json", "quantize_config.json", "hf_quant_config.json", "README.md")  # by hubbot; a variant has its own


def is_carried(path: str) -> bool:
    """Whether a file of the source goes unchanged into every folder made of it."""
    return _fits(path, _CARRIED)


def is_fetched(path: str) -> bool:
    """Whether a file that holds no weights of the model itself is wanted of a repo."""
    return _fits(path, _CARRIED) or path in _READ


def is_licence(path: str) -> bool:
    return _fits(path, _LICENCES)


def _fits(path: str, patterns: tuple[str, ...]) -> bool:
    return any(path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
