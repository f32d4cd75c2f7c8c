"""The Python of a card: how a folder of safetensors is loaded and asked."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hubbot.cards.escape import line
from hubbot.runtimes.layouts import Layout, layouts_of
from hubbot.runtimes.table import Runtime, answer

__all__ = ["PICTURE", "PICTURE_QUESTION", "QUESTION", "START", "python_lines"]

QUESTION = "Name the four seasons."
START = "Once upon a time"
PICTURE = "https://example.org/picture.jpg"
PICTURE_QUESTION = "What is in this picture?"


def python_lines(
    name: str,
    variant: str,
    *,
    also: Sequence[Layout] = (),
    chat: bool = False,
    sees: bool = False,
    picture: str | None = PICTURE,
    revision: str = "main",
    revisions: Sequence[str] = (),
    new_tokens: int | None = None,
    kernel: str | None = None,
) -> list[str]:
    """Lines that load a variant and print what it says.

    name: Hub id or folder. also: as for `layouts_of`. chat: whether the model has a chat
    template. sees: whether it reads images beside text: where it has a chat template too, it is shown `picture`, an address
    or a file; None: where nothing says how one is cut. revision: the branch that holds it. revisions: others, of which the reader may name one. new_tokens: how many to say.
    kernel: GPTQModel's, where it is not to choose.
    """
    shown = picture if sees and chat else None
    reader = "AutoProcessor" if shown else "AutoTokenizer"
    layouts = layouts_of(variant, also)
    alone = Layout.GPTQ_ALONE in layouts or not answer(variant, Runtime.TRANSFORMERS, also).reads  # by GPTQModel
    auto = "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"
    others = ", ".join(json.dumps(line(each, limit=96)) for each in revisions[:8])
    named = bool(revisions) or revision != "main"
    branch = ", revision=revision" if named else ""
    choice = f"revision = {json.dumps(line(revision, limit=96))}{f'  # or {others}' if others else ''}"
    return [
        *_imports(variant, auto, reader, _config(variant, also, kernel), alone=alone, sees=sees),
        "",
        f"name = {json.dumps(name)}",
        *([choice] if named else []),
        f"{reader.removeprefix('Auto').lower()} = {reader}.from_pretrained(name{branch})",
        f"model = {_loading(auto, branch, _config(variant, also, kernel), kernel, alone=alone)}",
        *(_chat(new_tokens or 200, shown) if chat else _text(new_tokens or 50)),
    ]


# What from_pretrained must be told of a layout; the table of runtimes says why.
_CONFIGS = {
    Layout.GPTQ_ROW: ("GPTQConfig", 'bits={bits}, backend="gptq_torch"'),
    Layout.GPTQ_GROUPS: ("GPTQConfig", 'bits={bits}, backend="gptq_torch"'),
    Layout.PACKED_4: ("CompressedTensorsConfig", "dequantize=True"),
    Layout.PACKED_8: ("CompressedTensorsConfig", "dequantize=True"),
}


def _config(variant: str, also: Sequence[Layout], kernel: str | None) -> tuple[str, str] | None:
    """Name and arguments of a configuration, where a variant needs one."""
    if kernel:
        return "GPTQConfig", f'bits={variant.removeprefix("gptq-")[:1]}, backend="{kernel}"'
    layouts = layouts_of(variant, also)
    if Layout.PACKED_CUT in layouts:  # which cannot be decoded on loading
        return None
    found = next((_CONFIGS[layout] for layout in layouts if layout in _CONFIGS), None)
    return (found[0], found[1].format(bits=variant.removeprefix("gptq-")[:1])) if found else None


def _imports(
    variant: str, auto: str, reader: str, config: tuple[str, str] | None, *, alone: bool, sees: bool
) -> list[str]:
    packages = answer(variant, Runtime.TRANSFORMERS).packages + (" pillow torchvision" if sees else "")
    compiler = "; gptqmodel compiles kernels on a CPU: apt install g++" if "gptqmodel" in packages else ""
    install = f"# pip install transformers {packages}{compiler}"
    if alone:
        return [install, "from gptqmodel import GPTQModel", f"from transformers import {reader}"]
    names = sorted([auto, reader, *((config[0],) if config else ())])
    return [install, f"from transformers import {', '.join(names)}"]


def _loading(auto: str, branch: str, config: tuple[str, str] | None, kernel: str | None, *, alone: bool) -> str:
    if alone:
        chosen = f', backend="{kernel}"' if kernel else ""
        return f"GPTQModel.load(name{branch}{chosen}).model"
    told = f", quantization_config={config[0]}({config[1]})" if config else ""
    return f'{auto}.from_pretrained(name{branch}, device_map="auto"{told})'


def _chat(new_tokens: int, picture: str | None) -> list[str]:
    """A question, about a picture where there is one."""
    reader, tokenized, kept = (
        ("processor", "tokenize=True, ", ", dtype=model.dtype") if picture else ("tokenizer", "", "")
    )
    if picture:
        asked = [
            f"picture = {json.dumps(picture)}  # an address or a file",
            f'question = [{{"type": "image", "url": picture}}, {{"type": "text", "text": {json.dumps(PICTURE_QUESTION)}}}]',
            'messages = [{"role": "user", "content": question}]',
        ]
    else:
        asked = [f'messages = [{{"role": "user", "content": {json.dumps(QUESTION)}}}]']
    return [
        *asked,
        f"inputs = {reader}.apply_chat_template(",
        f'    messages, add_generation_prompt=True, {tokenized}return_dict=True, return_tensors="pt"',
        f").to(model.device{kept})",
        f"output = model.generate(**inputs, max_new_tokens={new_tokens})",
        f'print({reader}.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
    ]


def _text(new_tokens: int) -> list[str]:
    return [
        f'inputs = tokenizer({json.dumps(START)}, return_tensors="pt").to(model.device)',
        f"print(tokenizer.decode(model.generate(**inputs, max_new_tokens={new_tokens})[0]))",
    ]
