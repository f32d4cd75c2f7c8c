"""Chat templates and end tokens are read as transformers reads them, wherever a publisher has put them."""

import json
import re

import pytest

from hubbot.demo.tokenizer import train_tokenizer, write_tokenizer
from hubbot.model.chat import Tokens, differences, end_tokens, surroundings
from hubbot.model.own_tokenizer import load_tokenizer, read_chat
from hubbot.model.snapshot import visible_files
from hubbot.model.tokenizer import read_chat_templates

FILE, CONFIG, TOOL = "{{ 'file' }}\n", "{{ 'config' }}", "{{ 'tool' }}"
PIECES = train_tokenizer([f"line {number} of some text" for number in range(300)], vocabulary=300)


@pytest.fixture
def folder(tmp_path):
    """A tokenizer without any template."""
    write_tokenizer(PIECES, tmp_path, length=64)
    (tmp_path / "chat_template.jinja").unlink()
    return tmp_path


def _configure(folder, **keys):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def _both(folder):
    """(hubbot's, transformers') templates by name."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder).chat_template
    return read_chat_templates(visible_files(folder)), {"default": theirs} if isinstance(theirs, str) else theirs or {}


def _write(folder, name, text):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())


SITUATIONS = {
    "nowhere": ({}, None, {}),
    "in a file": ({"chat_template.jinja": FILE}, None, {"default": FILE}),
    "in a file beside another in the configuration": ({"chat_template.jinja": FILE}, CONFIG, {"default": FILE}),
    "in the configuration": ({}, CONFIG, {"default": CONFIG}),
    "in a list": (
        {},
        [{"name": "default", "template": CONFIG}, {"name": "tool_use", "template": TOOL}],
        {"default": CONFIG, "tool_use": TOOL},
    ),
    "in a list without a default": ({}, [{"name": "rag", "template": TOOL}], {"rag": TOOL}),
    "in a file with others": (
        {"chat_template.jinja": FILE, "additional_chat_templates/tool_use.jinja": TOOL},
        CONFIG,
        {"default": FILE, "tool_use": TOOL},
    ),
    "in other files alone": ({"additional_chat_templates/a.b.jinja": TOOL}, CONFIG, {"a.b": TOOL}),
    "with the line ends of Windows": ({"chat_template.jinja": "a\r\nb\rc\n"}, None, {"default": "a\nb\nc\n"}),
    "with a byte order mark": ({"chat_template.jinja": "\ufeffa"}, None, {"default": "\ufeffa"}),
    "in a folder of its own": ({"old/chat_template.jinja": FILE}, None, {}),
    "below a folder of the usual name": ({"old/additional_chat_templates/rag.jinja": FILE}, None, {}),
}


@pytest.mark.parametrize("where", SITUATIONS)
def test_templates_are_found_where_transformers_finds_them(where, folder):
    files, configured, expected = SITUATIONS[where]
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _write(folder, name, text)
    if configured:
        _configure(folder, chat_template=configured)
    ours, theirs = _both(folder)
    assert ours == theirs == expected


def test_a_null_in_the_configuration_hides_no_file(folder):
    _configure(folder, chat_template=None)
    _write(folder, "chat_template.jinja", FILE)
    ours, theirs = _both(folder)
    assert ours == theirs == {"default": FILE}


def test_a_processors_template_counts_where_the_tokenizer_has_none(folder):
    _write(folder, "chat_template.json", json.dumps({"chat_template": TOOL}))
    assert read_chat_templates(visible_files(folder)) == {"default": TOOL}
    _configure(folder, chat_template=CONFIG)
    ours, theirs = _both(folder)
    assert ours == theirs == {"default": CONFIG}


class _Tokenizer:
    eos_token_id = 7


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, None, (7,)),
        ({"eos_token_id": 2}, None, (2, 7)),
        ({"eos_token_id": [2, 9]}, {"eos_token_id": [2, 4]}, (2, 4, 7, 9)),
        ({"text_config": {"eos_token_id": 3}}, {"eos_token_id": None}, (3, 7)),
        ({"eos_token_id": -1}, {"eos_token_id": True}, (7,)),
    ],
)
def test_end_tokens_are_those_of_configuration_generation_configuration_and_tokenizer(
    config, generation, expected, tmp_path
):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert end_tokens(tmp_path, _Tokenizer()) == expected


def _of(**changed):
    known = {"text": (5, 6), "sequence": (1, 5, 6), "prompt": (3, 5, 4), "ends": (2, 4)}
    return Tokens(**{**known, **changed})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"text": (5, 7)}, "cuts a text into other tokens than the source: in place 1 it has 7, the source 6 'six'"),
        (
            {"sequence": (5, 6)},
            "tokens before and after it into other tokens than the source: in place 0 it has 5, the",
        ),
        ({"prompt": (3, 5)}, "a conversation of the chat template into other tokens.* in place 2 it has the end, the"),
        ({"ends": (2,)}, "does not end a text at 4 'four', where the source ends one"),
    ],
)
def test_a_chat_that_runs_on_other_tokens_is_told_by_the_first_that_differs(changed, said):
    (found,) = differences(_of(), _of(**changed), {4: "four", 6: "six"})
    assert re.search(said, found)


def test_more_end_tokens_than_the_sources_make_no_difference():
    assert differences(_of(), _of(ends=(2, 4, 9)), {}) == ()


def test_what_surrounds_a_text_is_what_its_sequence_has_more():
    assert surroundings(_of()) == ((1,), ())
    assert surroundings(_of(sequence=(1, 9, 5, 6, 2))) == ((1, 9), (2,))
    assert surroundings(_of(sequence=(1, 7, 8))) == ((), ())


def test_the_probe_holds_special_tokens_and_the_end_tokens_come_first(folder):
    path = folder / "tokenizer.json"
    known = json.loads(path.read_text())
    marks = [{**known["added_tokens"][0], "id": 300 + n, "content": f"<|{n}|>"} for n in range(30)]
    path.write_text(json.dumps({**known, "added_tokens": [*known["added_tokens"], *marks]}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [329]}))
    chat = read_chat(folder, load_tokenizer(folder))
    assert "x<|29|>y" in chat.probe
    assert 329 in chat.tokens.text
    assert chat.tokens.sequence[0] == 1
    assert "<|25|>" not in chat.probe, "a vocabulary with thousands of reserved tokens makes no endless text"
