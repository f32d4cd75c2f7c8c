"""The header in front of the weights, which every variant of a model repeats."""

import pytest

from hubbot import llamacpp
from hubbot.formats.gguf import layout


def _header(keys):
    (shard,) = layout.lay_out([], {key: _value(value) for key, value in keys.items()}, "llama")
    return shard.header


def _value(items):
    llamacpp.gguf()
    from gguf.gguf_writer import GGUFValue, GGUFValueType

    return GGUFValue(items, GGUFValueType.ARRAY)


def _token_types(count):
    return [llamacpp.gguf().TokenType.NORMAL] * count


@pytest.mark.parametrize(
    "made",
    [
        lambda count: [f"tökén {number}" for number in range(count)],
        lambda count: [b"\xff\x00 raw"] * (count - 1) + ["text"],
        lambda count: [-1.5 * number for number in range(count)],
        lambda count: list(range(-3, count - 3)),
        lambda count: [number % 2 == 0 for number in range(count)],
        _token_types,
    ],
    ids=["texts", "bytes and a text", "numbers", "counts", "truths", "members of an enumeration"],
)
def test_a_long_list_of_the_tokenizer_has_the_bytes_that_gguf_py_gives_it(made, monkeypatch):
    keys = {"tokenizer.ggml.some": made(1_001)}
    ours = _header(keys)
    monkeypatch.setattr(layout, "_writer", lambda: llamacpp.gguf().GGUFWriter)
    assert ours == _header(keys)


def test_two_lists_of_one_length_keep_their_own_bytes():
    first, second = list(range(2_000)), list(range(1, 2_001))
    assert _header({"a": first}) != _header({"a": second})
    assert _header({"a": first}) == _header({"a": list(first)})
