"""No token id lies beyond the rows of the embedding, whatever file it is written in."""

from __future__ import annotations

import json
import shutil

import pytest

from hubbot.child.source import examine
from hubbot.errors import HubbotError, SourceRefused, Unsupported
from hubbot.model import read_facts
from hubbot.model.own_tokenizer import load_tokenizer, loading_once
from hubbot.model.tokens import check_vocabulary
from tests.model.folders import change, copied

TOKEN = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


# SentencePiece's vocabulary, and byte-level BPE
@pytest.fixture(params=["llama", pytest.param("olmo2", marks=pytest.mark.slow)])
def folder(request, tiny_model, tmp_path):
    return copied(tiny_model(request.param), tmp_path)


def rows_of(folder):
    return json.loads((folder / "config.json").read_text())["vocab_size"]


def refusal(folder):
    with pytest.raises(SourceRefused) as caught:
        examine(read_facts(folder))
    return str(caught.value)


def test_an_added_token_without_a_row_is_named_with_its_id_and_the_rows(folder):
    rows = rows_of(folder)
    path = folder / "tokenizer.json"
    fast = json.loads(path.read_text())
    fast["added_tokens"] += [{"id": rows + n, "content": f"<|new{n}|>"} | TOKEN for n in range(2)]
    path.write_text(json.dumps(fast))
    said = refusal(folder)
    assert f"'<|new0|>' has the id {rows:,} in tokenizer.json (2 tokens in all, up to {rows + 1:,})" in said
    assert f"has {rows:,} rows, 0 to {rows - 1:,}" in said


def test_a_token_of_the_vocabulary_itself_without_a_row_is_named(folder):
    path = folder / "tokenizer.json"
    fast = json.loads(path.read_text())
    fast["model"]["vocab"]["brandnew"] = rows_of(folder)
    path.write_text(json.dumps(fast))
    assert "'brandnew' has the id" in refusal(folder)


def test_a_special_token_that_only_the_configuration_names_is_counted_as_transformers_adds_it(folder):
    change(folder / "tokenizer_config.json", pad_token="[PAD]")
    said = refusal(folder)
    assert f"'[PAD]' has the id {rows_of(folder):,}" in said


def test_added_tokens_json_is_read_as_llama_cpp_reads_it(folder):
    change(folder / "added_tokens.json", **{"<|turn|>": rows_of(folder) + 3})
    assert f"'<|turn|>' has the id {rows_of(folder) + 3:,}" in refusal(folder)


def test_added_tokens_decoder_is_read(folder):
    decoder = {str(rows_of(folder)): {"content": "<|late|>"} | TOKEN}
    change(folder / "tokenizer_config.json", added_tokens_decoder=decoder)
    assert "'<|late|>' has the id" in refusal(folder)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("key", ["pad_token_id", "bos_token_id", "eos_token_id"])
def test_an_id_that_a_configuration_names_is_refused_with_its_key_and_vocab_size(folder, file, key):
    rows = rows_of(folder)
    change(folder / file, **{key: [0, rows] if key == "eos_token_id" else rows})
    said = refusal(folder)
    assert f"{key} of {file} is {rows}" in said
    assert f"vocab_size of config.json is {rows:,}" in said


def test_a_negative_id_stands_for_none(folder):
    change(folder / "generation_config.json", pad_token_id=-1)
    examine(read_facts(folder))


@pytest.mark.parametrize("value", ["</s>", 2.0, [[2]], True, {"id": 2}])
def test_an_id_of_another_type_is_a_sentence(folder, value):
    change(folder / "generation_config.json", eos_token_id=value)
    assert "eos_token_id of generation_config.json must be a whole number" in refusal(folder)


def test_a_sentencepiece_model_with_more_pieces_than_rows_is_refused(tiny_model, tmp_path):
    shutil.copy(tiny_model("llama") / "tokenizer.model", tmp_path)
    check_vocabulary(tmp_path, known={}, rows=512)
    with pytest.raises(SourceRefused, match=r"has the id 511 in tokenizer\.model"):
        check_vocabulary(tmp_path, known={}, rows=511)


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit",
    [
        lambda fast: fast["model"].update(type="NoSuchModel"),
        lambda fast: fast["model"].update(vocab={"a": "one"}),
        lambda fast: fast["model"].update(vocab=None),
        lambda fast: fast["model"].update(merges=[["no", "such"]]),
        lambda fast: fast.update(added_tokens=[{"id": "x"}]),
        lambda fast: fast.update(added_tokens=3),
        lambda fast: fast.update(normalizer={"type": "NoSuchNormalizer"}),
        lambda fast: fast.update(post_processor=7),
    ],
)
def test_whatever_the_tokenizers_library_raises_becomes_one_sentence(folder, edit):
    path = folder / "tokenizer.json"
    fast = json.loads(path.read_text())
    edit(fast)
    path.write_text(json.dumps(fast))
    with pytest.raises(HubbotError) as caught:
        examine(read_facts(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"tokenizer_class": 7},
        {"tokenizer_class": "NoSuchTokenizer"},
        {"bos_token": 12},
        {"bos_token": {"content": 5}},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"3": 7}},
        {"added_tokens_decoder": []},
        {"extra_special_tokens": 4},
        {"model_max_length": "long"},
    ],
    ids=str,
)
def test_whatever_tokenizer_config_json_holds_is_read_or_one_sentence(folder, keys):
    change(folder / "tokenizer_config.json", **keys)
    said = None
    try:
        examine(read_facts(folder))
    except HubbotError as error:
        said = str(error)
    assert said is None or "\n" not in said


def test_a_vocabulary_of_tiktokens_counts_for_nothing_beside_tokenizer_json(folder):
    (folder / "tokenizer.model").write_text("IQ== 0\r\nIg== 1\n")
    examine(read_facts(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SourceRefused, match=r"tokenizer\.model is a vocabulary of tiktoken's, and no tokenizer\.json"):
        read_facts(folder)


def test_a_tokenizer_that_leaves_merges_out_at_random_is_refused(folder):
    path = folder / "tokenizer.json"
    fast = json.loads(path.read_text())
    path.write_text(json.dumps({**fast, "model": {**fast["model"], "dropout": 0.1}}))
    with pytest.raises(SourceRefused, match=r"model\.dropout of tokenizer\.json is 0\.1"):
        read_facts(folder)


def test_a_tokenizer_that_wants_the_authors_code_is_told_with_the_key_that_asks_for_it(tiny_model, tmp_path):
    folder = copied(tiny_model("llama"), tmp_path)
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]},
    )
    with pytest.raises(
        Unsupported, match=r"asks for Python code of the author's \(auto_map\), which hubbot never runs"
    ):
        load_tokenizer(folder)


def test_whoever_asks_a_tokenizer_that_is_shared_has_a_vocabulary_of_his_own(folder):
    alone = load_tokenizer(folder).get_vocab()
    with loading_once():
        load_tokenizer(folder).get_vocab().clear()
        assert load_tokenizer(folder).get_vocab() == load_tokenizer(folder).vocab == alone
