"""What a GGUF says of its tokenizer where hubbot knows better than the converter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubbot import llamacpp

__all__ = ["with_templates"]

_TEMPLATES = "tokenizer.chat_template"


def with_templates(metadata: Mapping[str, Any], templates: Mapping[str, str]) -> dict[str, Any]:
    """The converter's keys with the source's chat templates in the place of those that gguf-py chose.

    metadata: key -> GGUFValue. templates: name -> text; without any, what the converter chose stays: it knows
    templates for tokenizers that come without.
    """
    if not templates:
        return dict(metadata)
    keys = _keys(templates)
    kept = {key: value for key, value in metadata.items() if key in keys or not key.startswith(_TEMPLATES)}
    return {**kept, **keys}


def _keys(templates: Mapping[str, str]) -> dict[str, Any]:
    """The keys as gguf-py writes them; the list of names in order, which there changes from run to run."""
    gguf = llamacpp.gguf()
    writer = gguf.GGUFWriter(path=None, arch="llama")
    writer.add_chat_template([{"name": name, "template": text} for name, text in templates.items()])
    keys = {key: value for key, value in writer.kv_data[0].items() if key.startswith(_TEMPLATES)}
    if names := keys.get(gguf.Keys.Tokenizer.CHAT_TEMPLATES):
        names.value = sorted(names.value)
    return keys
