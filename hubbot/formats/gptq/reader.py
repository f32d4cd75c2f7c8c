"""GPTQ folders read by transformers with GPTQModel's kernels, or by GPTQModel alone: a quantized head, experts, odd layers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from transformers import GPTQConfig, PreTrainedModel

from hubbot.environment import PROCESS
from hubbot.errors import SourceRefused
from hubbot.formats.check import Reader, from_pretrained, main
from hubbot.formats.gptq.definition import GPTQMODEL_ALONE
from hubbot.formats.stored import Checkpoint, quantization_of
from hubbot.model.config import read_values

__all__ = ["reader_of"]

PROCESS.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its own pool; it asks for more than two cores have unless told


def reader_of(folder: Path) -> Reader:
    quantization = quantization_of(folder)
    model_type = read_values(folder / "config.json").get("model_type")
    if quantization.get("lm_head") or model_type in GPTQMODEL_ALONE or _holds_experts(folder):
        return Reader(kernels="gptqmodel", alone=True, load=_by_gptqmodel)
    return Reader(kernels="gptqmodel", load=partial(_by_transformers, quantization))


def _holds_experts(folder: Path) -> bool:
    """Whether codes of experts are there, which transformers takes for absent and fills with random weights."""
    try:
        names = Checkpoint.of(folder).files
    except SourceRefused:  # a folder without weights: whoever loads it says so
        return False
    return any(".experts." in name and name.endswith(".qweight") for name in names)


def _by_transformers(
    quantization: Mapping[str, Any], folder: Path, device: str, dtype: torch.dtype | str
) -> PreTrainedModel:
    # Of its own choice GPTQModel 7.7 compiles kernels first, on a CPU anew in every home and on a GPU with CUDA's
    # compiler, which a container has not; for groups of 16 it chooses a CPU kernel that then refuses them. Its torch
    # kernels need no compiler. On a CPU others are faster, which counts for a benchmark.
    if dtype != torch.float32 and device == "cpu" and quantization["group_size"] != 16:
        return from_pretrained(folder, device, dtype)
    torch._dynamo.config.disable = True  # it would have torch compile its torch kernels, in further processes
    kernels = GPTQConfig(bits=quantization["bits"], backend="gptq_torch")
    return from_pretrained(folder, device, dtype, quantization_config=kernels)


def _by_gptqmodel(folder: Path, device: str, dtype: torch.dtype | str) -> PreTrainedModel:  # noqa: ARG001
    """transformers takes the codes of a quantized head for an unquantized layer that is absent."""
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.models.auto import check_and_get_model_definition

    # text alone is asked: what prepares images and videos may want torchvision, which is not hubbot's
    check_and_get_model_definition(str(folder)).require_load_processor = False
    loaded = GPTQModel.load(str(folder), device=device, backend=BACKEND.GPTQ_TORCH, dtype=torch.float16)
    model: PreTrainedModel = loaded.model
    return model.eval()


if __name__ == "__main__":
    main(reader_of)
