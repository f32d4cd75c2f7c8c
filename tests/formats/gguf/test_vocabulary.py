"""llama.cpp begins and ends texts as the source does, whatever its converter makes of the tokenizer's files."""

import json

import pytest

from hubbot.errors import Unsupported
from hubbot.formats.gguf.check import read
from hubbot.model.chat import differences
from hubbot.model.own_tokenizer import load_tokenizer, read_chat
from tests.formats.gguf.chain import keys_and_tensors, make, open_format
from tests.models import make_model


@pytest.fixture
def folder(tmp_path):
    return make_model("llama", tmp_path / "tiny")


def _change(path, **values):
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**found, **values}))


def _made(folder, out):
    """(keys of a file, what llama.cpp makes of the source's chat otherwise than the source)."""
    files, _ = make(folder, ["Q8_0"], out, decoded=False)
    chat = read_chat(folder, load_tokenizer(folder), "<s>### user\nHow are you?</s>\n")
    tokens = read(files["Q8_0"].paths, None, chat=chat).tokens
    assert tokens
    keys, _ = keys_and_tensors(files["Q8_0"].paths[0])
    return {key: value for key, value in keys.items() if key.startswith("tokenizer.ggml")}, differences(
        chat.tokens, tokens, {}
    )


def _post_process(folder, *sequence):
    """Have the tokenizer put special tokens around texts: "<s>", or None for the text itself."""
    items = [
        {"SpecialToken": {"id": item, "type_id": 0}} if item else {"Sequence": {"id": "A", "type_id": 0}}
        for item in sequence
    ]
    ids = {"<s>": 1, "</s>": 2}
    special = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in sequence if name}
    pair = [*items, {"Sequence": {"id": "B", "type_id": 1}}]
    template = {"type": "TemplateProcessing", "single": items, "pair": pair, "special_tokens": special}
    _change(folder / "tokenizer.json", post_processor=template)


def test_an_end_token_that_only_the_generation_configuration_names_ends_texts(folder, tmp_path):
    _change(folder / "generation_config.json", eos_token_id=[2, 300])
    keys, other = _made(folder, tmp_path / "out")
    assert keys["tokenizer.ggml.eot_token_id"] == 300
    assert other == ()


def test_two_unnamed_end_tokens_find_places_and_four_do_not(folder, tmp_path):
    _change(folder / "config.json", eos_token_id=[2, 300, 301])
    keys, other = _made(folder, tmp_path / "out")
    assert (keys["tokenizer.ggml.eot_token_id"], keys["tokenizer.ggml.eom_token_id"]) == (300, 301)
    assert other == ()
    _change(folder / "config.json", eos_token_id=[2, 300, 301, 302])
    with pytest.raises(Unsupported, match=r"ends a text at 4 tokens; llama\.cpp knows 2 places"):
        open_format(folder, ["Q8_0"], tmp_path / "other")


@pytest.mark.parametrize(
    ("around", "flags"),
    [
        (("<s>", None), {}),
        ((None,), {"add_bos_token": True}),  # transformers goes by tokenizer.json, gguf-py by the flag
        ((None,), {}),  # and without a flag llama.cpp goes by the kind of vocabulary
        (("<s>", None, "</s>"), {}),
        ((None, "</s>"), {"add_eos_token": False}),
    ],
)
def test_begin_and_end_are_put_around_a_text_as_the_sources_tokenizer_puts_them(around, flags, folder, tmp_path):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {key: value for key, value in config.items() if not key.startswith("add_")}
    (folder / "tokenizer_config.json").write_text(json.dumps({**kept, **flags}))
    _post_process(folder, *around)
    keys, other = _made(folder, tmp_path / "out")
    assert other == ()
    assert keys.get("tokenizer.ggml.add_bos_token", True) is (around[0] == "<s>")


def test_what_llama_cpp_knows_is_left_as_the_converter_wrote_it(folder, tmp_path):
    before, _ = _made(folder, tmp_path / "out")
    assert not {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"} & before.keys()
