"""Chat templates and end tokens are read as transformers reads them, wherever a publisher has put them."""

import json

import pytest

from hubbot.demo.tokenizer import train_tokenizer, write_tokenizer
from hubbot.model.chat import end_tokens
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
