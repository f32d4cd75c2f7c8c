"""llama.cpp tries a model before it has weights, and is told of its tokenizer what hubbot knows better than the converter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hubbot import llamacpp
from hubbot.errors import Unsupported
from hubbot.formats.gguf.check import ask_llama_cpp
from hubbot.formats.gguf.converter import Converted
from hubbot.formats.gguf.recipe import hollow_file, hollow_shard
from hubbot.model.chat import Chat, Tokens, differences, settled, surroundings

__all__ = ["refuse_other_texts", "rehearsed", "taught", "with_templates"]

_TEMPLATES = "tokenizer.chat_template"
_TOKENIZER = "tokenizer.ggml."
_known: dict[str, dict[str, Any]] = {}  # digest of a file's header -> what llama.cpp makes of it


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


def rehearsed(model: Converted, chat: Chat, work: Path) -> dict[str, Any]:
    """What llama.cpp makes of the converted model and of the source's chat before there is a weight: see `runtime.rehearse`.

    Asked once for each file. Raises Unsupported where llama.cpp cannot load such a file.
    """
    shard = hollow_shard(model)
    digest = hashlib.sha256(shard.header + repr((chat.probe, chat.prompt)).encode("utf-8", "replace"))
    if (key := digest.hexdigest()) not in _known:
        with hollow_file(shard, work / "rehearsal.gguf") as path:
            answer = ask_llama_cpp({"model": str(path), "rehearsal": True, "probe": chat.probe, "prompt": chat.prompt})
        if "error" in answer:
            msg = f"{answer['error']}. The file is what its own converter makes of this model, without the weights. Leave the GGUF types out of --variants."
            raise Unsupported(msg)
        _known[key] = answer
    return _known[key]


def refuse_other_texts(
    found: Mapping[str, Any], chat: Chat, names: Mapping[int, str], stripping: Sequence[str]
) -> None:
    """Raise Unsupported where llama.cpp cuts or ends texts otherwise than the source.

    found: what it makes of the chat. names: token id -> its text. stripping: special tokens that take blanks beside them.
    """
    heard, _ = settled(chat, Tokens(**{name: tuple(ids) for name, ids in found["tokens"].items()}))
    if other := differences(chat.tokens, heard, names):
        strips = [token for token in stripping if token in chat.probe + chat.prompt]
        why = (
            f"; {strips[0]!a} takes the blanks beside it (lstrip or rstrip), which no key tells llama.cpp"
            if strips
            else ""
        )
        msg = f"llama.cpp would read other texts than the model was trained on: {other[0]}{why}. Leave the GGUF types out of --variants."
        raise Unsupported(msg)


def taught(model: Converted, source: Tokens, found: Mapping[str, Any]) -> Converted:
    """The model with the keys that llama.cpp needs to begin and to end texts as the source does.

    found: what llama.cpp does without them. Only what it would do otherwise is written: it knows many end tokens by their
    names. Raises Unsupported where it cannot be told of all the end tokens.
    """
    before, after = surroundings(source)
    keys: dict[str, bool | int] = {}
    if found["begins"] != bool(before):
        keys["add_bos_token"] = bool(before)
    if found["closes"] != bool(after):
        keys["add_eos_token"] = bool(after)
    if len(before) == 1 and before[0] != found["begin"]:
        keys["bos_token_id"] = before[0]
    missing = [token for token in source.ends if token not in found["tokens"]["ends"]]
    free = [name for name in ("eos", "eot", "eom") if f"{_TOKENIZER}{name}_token_id" not in model.metadata]
    if len(missing) > len(free):
        msg = (
            f"The source ends a text at {len(source.ends)} tokens; llama.cpp knows {len(free)} places for the {len(missing)} "
            f"of them ({', '.join(map(str, missing))}) that it does not know by name. Leave the GGUF types out of --variants."
        )
        raise Unsupported(msg)
    keys |= {f"{name}_token_id": token for name, token in zip(free, missing, strict=False)}
    return replace(model, metadata={**model.metadata, **_values(keys)})


def _values(keys: Mapping[str, bool | int]) -> dict[str, Any]:
    llamacpp.gguf()
    from gguf.gguf_writer import GGUFValue, GGUFValueType

    return {
        _TOKENIZER + name: GGUFValue(value, GGUFValueType.BOOL if isinstance(value, bool) else GGUFValueType.UINT32)
        for name, value in keys.items()
    }
