"""A small honest model, written byte by byte, for the bad ones to be made from."""

import json
import struct

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
README = "---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# A model\n"
TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}


def shapes(layers=2):
    """Checkpoint name -> shape of the whole model."""
    found = {"model.embed_tokens.weight": [32, 8], "model.norm.weight": [8], "lm_head.weight": [32, 8]}
    for layer in range(layers):
        block = f"model.layers.{layer}"
        found |= {
            f"{block}.self_attn.q_proj.weight": [8, 8],
            f"{block}.self_attn.k_proj.weight": [4, 8],
            f"{block}.self_attn.v_proj.weight": [4, 8],
            f"{block}.self_attn.o_proj.weight": [8, 8],
            f"{block}.mlp.gate_proj.weight": [16, 8],
            f"{block}.mlp.up_proj.weight": [16, 8],
            f"{block}.mlp.down_proj.weight": [8, 16],
            f"{block}.input_layernorm.weight": [8],
            f"{block}.post_attention_layernorm.weight": [8],
        }
    return found


def entries(wanted=None):
    """The header's entries for float32 tensors in a row, and how many bytes they cover."""
    header, position = {}, 0
    for name, shape in (shapes() if wanted is None else wanted).items():
        size = 4
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    return header, position


def write_safetensors(path, header, data, *, length=None):
    """header: a dict, or the raw bytes. length: what the first 8 bytes announce, by default the truth."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)


def write_model(folder):
    """A folder that intake accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    header, size = entries()
    write_safetensors(folder / "model.safetensors", header, bytes(size))
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "tokenizer.json", TOKENIZER)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizerFast"})
    (folder / "README.md").write_text(README, encoding="utf-8")
    return folder


def write_sharded(folder, index=None):
    """The same model in two shards with an index."""
    write_model(folder)
    (folder / "model.safetensors").unlink()
    names = list(shapes())
    weight_map = {}
    for number, part in enumerate((names[:10], names[10:]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        header, size = entries({name: shapes()[name] for name in part})
        write_safetensors(folder / file, header, bytes(size))
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map | (index or {})})
    return folder


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def config(folder, **changes):
    """Write config.json with some values changed; None takes a key out."""
    values = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    write_json(folder / "config.json", values)


def front_matter(folder, yaml):
    (folder / "README.md").write_text(f"---\n{yaml}\n---\n# A model\n", encoding="utf-8")


def gguf(path, *, keys=(), tensors=(), version=3, counts=None, magic=b"GGUF", data=None):
    """A GGUF file. keys: (key, type, raw value). tensors: (name, dims, type, offset)."""
    n_tensors, n_keys = counts or (len(tensors), len(keys))
    out = magic + struct.pack("<IQQ", version, n_tensors, n_keys)
    for key, kind, raw in keys:
        out += text(key) + struct.pack("<I", kind) + raw
    for name, dims, kind, offset in tensors:
        out += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    out += bytes(-len(out) % 32)
    path.write_bytes(out + (bytes(128) if data is None else data))
    return path


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw
