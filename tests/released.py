"""Tiny models in the quantized layouts that authors release: made from a folder of 16-bit weights, for tests of reading them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file

LARGEST = 448.0  # of float8_e4m3fn


def release_fp8(
    folder: Path, into: Path, *, block: tuple[int, int] | None = (128, 128), activations: bool = False
) -> Path:
    """The model as DeepSeek and Qwen publish theirs: matrices of the blocks in FP8, scales beside them.

    block: rows and columns that share a scale; None: one scale a matrix. activations: a scale of inputs beside each too.
    """
    shutil.copytree(folder, into)
    tensors = load_file(into / "model.safetensors")
    for name in [name for name, tensor in tensors.items() if tensor.ndim == 2 and _is_rounded(name)]:
        codes, scales = fp8(tensors[name], block)
        tensors |= {name: codes, f"{name}_scale_inv": scales}
        if activations:
            tensors[f"{name.removesuffix('weight')}activation_scale"] = torch.tensor(0.5)
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    scheme = "static" if activations else "dynamic"
    method = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": scheme}
    configure(into, method | {"weight_block_size": list(block) if block else None})
    return into


def release_compressed(folder: Path, into: Path, strategy: str) -> Path:
    """The model in compressed-tensors' FP8, a bfloat16 scale a row or a matrix."""
    shutil.copytree(folder, into)
    tensors = load_file(into / "model.safetensors")
    for name in [name for name, tensor in tensors.items() if tensor.ndim == 2 and _is_rounded(name)]:
        codes, scales = fp8(tensors[name], (1, tensors[name].shape[1]) if strategy == "channel" else None)
        tensors |= {
            name: codes,
            f"{name}_scale": scales.bfloat16() if strategy == "channel" else scales.bfloat16().reshape(1),
        }
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, "dynamic": False}
    method = {"quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    configure(into, method | {"config_groups": groups, "ignore": ["lm_head"]})
    return into


def release_w4a16(folder: Path, into: Path, group: int = 64) -> Path:
    """The model as somebody rounds it with compressed-tensors: eight codes of 4 bits in an integer, a scale a group."""
    shutil.copytree(folder, into)
    tensors = load_file(into / "model.safetensors")
    for name in [name for name, tensor in tensors.items() if tensor.ndim == 2 and _is_rounded(name)]:
        weight = tensors.pop(name).float()
        tiles = weight.unflatten(1, (-1, group))
        scales = (tiles.abs().amax(-1) / 7.5).bfloat16()
        codes = (tiles / scales.float().unsqueeze(-1)).round().clamp(-8, 7).flatten(1).to(torch.int8)
        tensors[f"{name}_packed"] = pack_to_int32(codes, 4)
        tensors |= {f"{name}_scale": scales, f"{name}_shape": torch.tensor(weight.shape)}
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group, "symmetric": True}
    method = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    configure(into, method | {"config_groups": groups, "ignore": ["lm_head"]})
    return into


def release_mxfp4(folder: Path, into: Path) -> Path:
    """A gpt-oss model as OpenAI publishes its: codes and powers of two in place of the experts' weights."""
    shutil.copytree(folder, into)
    tensors = load_file(into / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        shape = (experts, rows, columns // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(118, 123, shape, generator=generator, dtype=torch.uint8)
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    configure(into, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]})
    return into


def _is_rounded(name: str) -> bool:
    return ".layers." in name and name.endswith("_proj.weight")


def fp8(weight: torch.Tensor, block: tuple[int, int] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and float32 scales of a matrix whose sizes are multiples of the block's."""
    rows, columns = block or weight.shape
    tiles = weight.float().reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)
    scales = tiles.abs().amax((1, 3)) / LARGEST
    codes = (tiles / scales[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
    return codes, scales if block else scales.reshape(())


def configure(folder: Path, quantization: dict[str, object]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))


def decoded_folder(folder: Path, weights: dict[str, torch.Tensor], into: Path) -> Path:
    """A copy of a released folder with these weights instead, and nothing about a quantization."""
    shutil.copytree(folder, into)
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((into / "config.json").read_text())
    del config["quantization_config"]
    (into / "config.json").write_text(json.dumps(config))
    return into
