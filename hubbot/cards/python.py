"""The Python of a card: how a folder of safetensors is loaded and asked."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hubbot.cards.escape import line
from hubbot.runtimes.layouts import Layout, layouts_of
from hubbot.runtimes.table import Runtime, answer

__all__ = ["QUESTION", "START", "python_lines"]

QUESTION = "Name the four seasons."
START = "Once upon a time"


def python_lines(
    name: str,
    variant: str,
    *,
    also: Sequence[Layout] = (),
    chat: bool = False,
    sees: bool = False,
    revision: str = "main",
    revisions: Sequence[str] = (),
    new_tokens: int | None = None,
) -> list[str]:
    """Lines that load a variant and print what it says.

    name: Hub id or folder. also: as for `layouts_of`. chat: whether the model has a chat
    template. sees: whether it reads images beside text. revision: the branch that holds it. revisions: others, of which the reader may name one. new_tokens: how many to say.
    """
    alone = bool(also) and not answer(variant, Runtime.TRANSFORMERS, also).reads  # GPTQModel without transformers
    auto = "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"
    others = ", ".join(json.dumps(line(each, limit=96)) for each in revisions[:8])
    named = bool(revisions) or revision != "main"
    branch = ", revision=revision" if named else ""
    choice = f"revision = {json.dumps(line(revision, limit=96))}{f'  # or {others}' if others else ''}"
    return [
        *_imports(variant, auto, alone=alone),
        "",
        f"name = {json.dumps(name)}",
        *([choice] if named else []),
        f"tokenizer = AutoTokenizer.from_pretrained(name{branch})",
        f"model = {_loading(variant, auto, branch, alone=alone)}",
        *(_chat(new_tokens or 200) if chat else _text(new_tokens or 50)),
    ]


# What from_pretrained must be told of a layout; the table of runtimes says why.
_CONFIGS = {
    Layout.GPTQ_ROW: ("GPTQConfig", 'bits={bits}, backend="gptq_torch"'),
    Layout.GPTQ_GROUPS: ("GPTQConfig", 'bits={bits}, backend="gptq_torch"'),
    Layout.PACKED_ASYM: ("CompressedTensorsConfig", "dequantize=True"),
}


def _config(variant: str) -> tuple[str, str] | None:
    """Name and arguments of a configuration, where a variant needs one."""
    found = next((_CONFIGS[layout] for layout in layouts_of(variant) if layout in _CONFIGS), None)
    return (found[0], found[1].format(bits=variant.removeprefix("gptq-")[:1])) if found else None


def _imports(variant: str, auto: str, *, alone: bool) -> list[str]:
    packages = answer(variant, Runtime.TRANSFORMERS).packages
    compiler = "; gptqmodel compiles kernels on a CPU: apt install g++" if "gptqmodel" in packages else ""
    install = f"# pip install transformers {packages}{compiler}"
    if alone:
        return [install, "from gptqmodel import GPTQModel", "from transformers import AutoTokenizer"]
    names = sorted([auto, "AutoTokenizer", *((config[0],) if (config := _config(variant)) else ())])
    return [install, f"from transformers import {', '.join(names)}"]


def _loading(variant: str, auto: str, branch: str, *, alone: bool) -> str:
    if alone:
        return f"GPTQModel.load(name{branch}).model"
    config = _config(variant)
    told = f", quantization_config={config[0]}({config[1]})" if config else ""
    return f'{auto}.from_pretrained(name{branch}, device_map="auto"{told})'


def _chat(new_tokens: int) -> list[str]:
    return [
        f'messages = [{{"role": "user", "content": {json.dumps(QUESTION)}}}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
        ").to(model.device)",
        f"output = model.generate(**inputs, max_new_tokens={new_tokens})",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
    ]


def _text(new_tokens: int) -> list[str]:
    return [
        f'inputs = tokenizer({json.dumps(START)}, return_tensors="pt").to(model.device)',
        f"print(tokenizer.decode(model.generate(**inputs, max_new_tokens={new_tokens})[0]))",
    ]
