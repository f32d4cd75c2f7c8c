"""A GGUF's vocabulary has what the source's tokenizer has, wherever it is written down."""

import json

import pytest

from hubbot.errors import Unsupported
from hubbot.formats.gguf.pieces import sentencepiece_model
from hubbot.llamacpp import gguf
from hubbot.model.own_tokenizer import load_tokenizer, token_ids
from tests.formats.gguf.chain import make, open_format
from tests.model.folders import change
from tests.models import make_model


@pytest.fixture
def folder(tmp_path):
    """As transformers 5 saves it: nothing of added tokens beside tokenizer.json."""
    return make_model("llama", tmp_path / "tiny")


def _added(folder, **tokens):
    """Name tokens of the vocabulary's last rows in tokenizer.json alone: text -> whether it is special."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    for number, (content, special) in enumerate(tokens.items(), 508):
        entry = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        whole["added_tokens"].append({"id": number, "content": content, "special": special, **entry})
        old = next(text for text, at in whole["model"]["vocab"].items() if at == number)
        whole["model"]["vocab"] = {content if text == old else text: at for text, at in whole["model"]["vocab"].items()}
        whole["model"]["merges"] = [pair for pair in whole["model"]["merges"] if old not in (*pair, "".join(pair))]
    (folder / "tokenizer.json").write_text(json.dumps(whole))


def _cut(path, text):
    """What llama.cpp makes of a text with the vocabulary of a file."""
    from hubbot.formats.gguf.runtime import Runtime

    return Runtime(str(path), hollow=True).tokenize(text)


def test_an_added_token_that_only_tokenizer_json_names_is_one_token_in_llama_cpp(folder, tmp_path):
    _added(folder, **{"<think>": False, "</think>": False, "<|call|>": True})
    files, _ = make(folder, ["Q8_0"], tmp_path / "out", decoded=False)
    text = "a <think>b</think><|call|>print(1)"
    source = token_ids(load_tokenizer(folder), text, whole=False)
    assert {508, 509, 510} <= set(source)
    assert _cut(files["Q8_0"].paths[0], text) == source
    kinds = gguf().GGUFReader(files["Q8_0"].paths[0]).get_field("tokenizer.ggml.token_type").contents()
    assert kinds[508:511] == [4, 4, 3]


def test_an_added_token_has_the_id_of_tokenizer_json_where_another_file_gives_it_a_row_without_a_token(
    folder, tmp_path
):
    _added(folder, **{"<think>": False})
    whole = json.loads((folder / "tokenizer.json").read_text())
    last = next(text for text, number in whole["model"]["vocab"].items() if number == 511)
    del whole["model"]["vocab"][last]
    whole["model"]["merges"] = [pair for pair in whole["model"]["merges"] if last not in (*pair, "".join(pair))]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    change(folder / "added_tokens.json", **{"<think>": 511})
    files, _ = make(folder, ["Q8_0"], tmp_path / "out", decoded=False)
    assert _cut(files["Q8_0"].paths[0], "<think>") == token_ids(load_tokenizer(folder), "<think>", whole=False)


def test_an_added_token_that_another_file_puts_in_the_place_of_a_token_is_refused(folder, tmp_path):
    _added(folder, **{"<think>": False})
    change(folder / "added_tokens.json", **{"<think>": 300})
    with pytest.raises(Unsupported, match=r"finds '<think>' for token 300, which the tokenizer calls"):
        open_format(folder, ["Q8_0"], tmp_path / "out")


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3"])
def test_a_vocabulary_without_a_sentencepiece_model_is_cut_as_tokenizer_json_says(name, tmp_path):
    folder = make_model(name, tmp_path / "tiny", tied=True)
    (folder / "tokenizer.model").unlink()
    text = "The sixteen assessors' statements were self-contradictory;  see self.assessment(statement)."
    files, _ = make(folder, ["Q8_0"], tmp_path / "out", decoded=False)
    assert _cut(files["Q8_0"].paths[0], text) == token_ids(load_tokenizer(folder), text, whole=False)
    assert not (folder / "tokenizer.model").exists()


def test_a_sentencepiece_model_of_tokenizer_json_cuts_as_the_one_that_it_was_made_of(folder, tmp_path):
    import sentencepiece

    text = "def assessment(statement): return [self.x for _ in range(16)]"
    own = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode(text)
    (folder / "tokenizer.model").unlink()
    made = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(folder))
    assert made.encode(text) == own
    change(folder / "tokenizer.json", model={"type": "Unigram", "vocab": []})
    assert sentencepiece_model(folder) is None


def test_a_blank_is_put_before_texts_where_the_sources_tokenizer_puts_one(folder, tmp_path):
    never = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
    change(folder / "tokenizer.json", pre_tokenizer=never)
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**whole, "normalizer": None}))
    files, _ = make(folder, ["Q8_0"], tmp_path / "out", decoded=False)
    assert _cut(files["Q8_0"].paths[0], "no blank") == token_ids(load_tokenizer(folder), "no blank", whole=False)


def test_a_seldom_token_that_tokenizer_model_calls_otherwise_is_refused(folder, tmp_path):
    whole = json.loads((folder / "tokenizer.json").read_text())
    old = next(text for text, number in whole["model"]["vocab"].items() if number == 508)
    whole["model"]["vocab"] = {"Ⱡ" if text == old else text: number for text, number in whole["model"]["vocab"].items()}
    whole["model"]["merges"] = [pair for pair in whole["model"]["merges"] if old not in (*pair, "".join(pair))]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(Unsupported, match=r"for token 508, which the tokenizer calls '\\u2c60'"):
        open_format(folder, ["Q8_0"], tmp_path / "out")
