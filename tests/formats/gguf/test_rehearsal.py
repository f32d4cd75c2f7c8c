"""Before a weight is read llama.cpp has loaded the model, and begins, cuts and ends texts as the source does."""

import json
from dataclasses import replace

import pytest

from hubbot.domain import Source
from hubbot.errors import Unsupported
from hubbot.formats import costs_of
from hubbot.formats.gguf.check import read
from hubbot.formats.gguf.rehearsal import rehearsed
from hubbot.formats.names import parse_variants
from hubbot.formats.protocol import Cost
from hubbot.model import read_facts
from hubbot.model.chat import differences, settled
from hubbot.model.own_tokenizer import load_tokenizer, read_chat
from hubbot.settings import Settings
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


def test_a_file_that_llama_cpp_cannot_load_is_told_before_it_has_weights(folder, tmp_path):
    model = open_format(folder, ["Q8_0"], tmp_path / "out").plan.model
    chat = read_chat(folder, load_tokenizer(folder))
    rehearsed(model, chat, tmp_path)
    fewer = replace(model, tensors=tuple(one for one in model.tensors if one.name != "blk.1.ffn_up.weight"))
    with pytest.raises(Unsupported, match=r"llama\.cpp cannot load the file: .*'blk\.1\.ffn_up\.weight' not found"):
        rehearsed(fewer, chat, tmp_path)
    taller = replace(model, tensors=tuple(_with_a_row_more(one) for one in model.tensors))
    with pytest.raises(
        Unsupported, match=r"llama\.cpp cannot load the file: .*'blk\.1\.ffn_up\.weight' has wrong shape"
    ):
        rehearsed(taller, chat, tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("PhiMoEForCausalLM", "otherwise than it was trained: its norms do not subtract the mean"),
        ("DeepseekV4ForCausalLM", "takes this architecture's experts as the MXFP4 blocks of its original alone"),
    ],
)
def test_an_architecture_that_llama_cpp_takes_otherwise_is_told_before_it_has_weights(
    folder, tmp_path, architecture, why
):
    source = Source(folder=str(folder), repo=None, revision=None, files={})
    facts = replace(read_facts(folder), architecture=architecture)
    found = costs_of(parse_variants("Q8_0"), source, facts, tmp_path, Settings())["Q8_0"]
    assert isinstance(found, Unsupported)
    assert why in str(found)


def _with_a_row_more(tensor):
    rows, *columns = tensor.shape
    return replace(tensor, shape=(rows + 1, *columns)) if tensor.name == "blk.1.ffn_up.weight" else tensor


def _blank(folder, scheme):
    """Have the tokenizer put a blank before texts: always also behind special tokens, first not, never nowhere."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    _change(folder / "tokenizer.json", normalizer=None, pre_tokenizer=metaspace)


def test_a_blank_behind_special_tokens_is_let_pass_for_every_reader_of_such_models_puts_it_there(folder, tmp_path):
    _blank(folder, "first")
    files, _ = make(folder, ["Q8_0"], tmp_path / "out", decoded=False)
    chat = read_chat(folder, load_tokenizer(folder), "<s>### user\nHow are you?</s>\n")
    heard = read(files["Q8_0"].paths, None, chat=chat).tokens
    assert heard
    assert heard.prompt != chat.tokens.prompt
    assert settled(chat, heard) == (
        replace(heard, text=chat.tokens.text, sequence=chat.tokens.sequence, prompt=chat.tokens.prompt),
        True,
    )
    _blank(folder, "always")
    assert settled(read_chat(folder, load_tokenizer(folder), chat.prompt), heard) == (heard, False)


def test_a_text_that_llama_cpp_cuts_otherwise_is_refused_before_anything_is_made(folder, tmp_path):
    _change(folder / "tokenizer.json", normalizer={"type": "Lowercase"}, pre_tokenizer=None)
    with pytest.raises(
        Unsupported, match=r"in place 0 it has \d+ '.*', the source \d+ '.*'\. Leave the GGUF types out"
    ):
        open_format(folder, ["Q8_0"], tmp_path / "out")


def _planned(folder, work, conversation):
    """What a plan finds for Q8_0. conversation: as the chat template writes one."""
    source = Source(folder=str(folder), repo=None, revision=None, files={})
    facts = replace(read_facts(folder), conversation=conversation)
    return costs_of(parse_variants("Q8_0"), source, facts, work, Settings())["Q8_0"]


@pytest.mark.parametrize(
    ("side", "text"), [("rstrip", "<s>### user\nHi</s>\n<s>"), ("lstrip", "<s>### user\nHi\n</s><s>")]
)
def test_a_mark_that_takes_the_blanks_beside_it_is_told_where_a_conversation_has_some(side, text, folder, tmp_path):
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    _change(folder / "tokenizer.json", added_tokens=[{**token, side: token["content"] == "</s>"} for token in tokens])
    assert isinstance(_planned(folder, tmp_path, "<s>### user\nHi</s><s>"), Cost)
    found = _planned(folder, tmp_path, text)
    assert "cuts a conversation of the chat template into other tokens than the source" in str(found)
    assert "'</s>' takes the blanks beside it (lstrip or rstrip), which no key tells llama.cpp" in str(found)


def test_two_tokens_before_every_text_are_told_before_anything_is_made(folder, tmp_path):
    _post_process(folder, "</s>", "<s>", None)
    found = _planned(folder, tmp_path, "")
    assert "cuts a text with the tokens before and after it into other tokens than the source" in str(found)
