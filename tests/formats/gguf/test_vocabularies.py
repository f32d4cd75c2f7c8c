"""Vocabularies of real models: llama.cpp's converter knows each by what its tokenizer makes of a text, and cuts texts as it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from hubbot.errors import Unsupported
from hubbot.llamacpp import find, gguf
from tests.formats.gguf.chain import open_format
from tests.gpt2 import BYTES, DIGITS, write_byte_level
from tests.tiers import suite

_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{many}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PLAIN = BYTES | {"use_regex": False}


def _split(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


CUT: dict[str, list[dict[str, object]]] = {
    "llama-bpe": [_split(_SPLIT.format(many="{1,3}")), _PLAIN],
    "qwen2": [_split(_SPLIT.format(many="")), _PLAIN],
    "starcoder": [DIGITS, BYTES],
    "falcon": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        BYTES,
        {"type": "Digits", "individual_digits": False},
        _split("[0-9][0-9][0-9]"),
    ],
}
_NORMAL = 1  # gguf's TokenType


def _folder(name: str, cut: list[dict[str, object]], into: Path) -> Path:
    """An empty model with the vocabulary that llama.cpp's tree carries under this name."""
    path = find().source / "models" / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip(f"this llama.cpp was set up without {path.name}: remove its folder and run `make setup`")
    reader = gguf().GGUFReader(path)
    tokens, kinds, merges = (
        reader.get_field(f"tokenizer.ggml.{key}").contents() for key in ("tokens", "token_type", "merges")
    )
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=len(tokens), tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=reader.get_field("tokenizer.ggml.eos_token_id").contents(), max_position_embeddings=128,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(into)
    write_byte_level(into, tokens, merges, special=[i for i, kind in enumerate(kinds) if kind != _NORMAL], cut=cut)
    if name == "llama-bpe":
        _as_llama_3(into / "tokenizer.json")
    configuration = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (into / "tokenizer_config.json").write_text(json.dumps(configuration), encoding="utf-8")
    return into


def _as_llama_3(file: Path) -> None:
    """Words of the vocabulary are taken whole, and a text begins with a token; without that one it is Smaug's."""
    whole = json.loads(file.read_text(encoding="utf-8"))
    begin = "<|begin_of_text|>"
    item = {"SpecialToken": {"id": begin, "type_id": 0}}
    single = [item, {"Sequence": {"id": "A", "type_id": 0}}]
    whole["model"]["ignore_merges"] = True
    whole["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {begin: {"id": begin, "ids": [128000], "tokens": [begin]}},
    }
    file.write_text(json.dumps(whole), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", suite(list(CUT), first=2))
def test_a_real_vocabulary_is_known_by_its_name_and_cut_as_the_source_cuts(name: str, tmp_path: Path) -> None:
    folder = _folder(name, CUT[name], tmp_path / "model")
    model = open_format(folder, ["Q8_0"], tmp_path / "out").plan.model  # its texts are cut by llama.cpp there
    assert model.metadata["tokenizer.ggml.pre"].value == name


@pytest.mark.slow
def test_a_vocabulary_cut_in_a_way_that_llama_cpp_does_not_know_is_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = _folder("llama-bpe", [_split(_SPLIT.format(many="{1,2}")), _PLAIN], tmp_path / "model")
    with pytest.raises(Unsupported, match="pre-tokenizer"):
        open_format(folder, ["Q8_0"], tmp_path / "out")
