"""bitsandbytes folders read by transformers with bitsandbytes' kernels."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from hubbot.formats.check import Reader, from_pretrained, main
from hubbot.formats.stored import quantization_of

__all__ = ["reader_of"]

_INT8 = 0.03  # its kernels also round the inputs of each layer to 8 bits, and pass values through float16 on the way
_OUTPUTS = 32  # that its kernel for CPUs with bfloat16 takes together


def reader_of(folder: Path) -> Reader:
    if quantization_of(folder).get("load_in_8bit"):
        return Reader(kernels="bitsandbytes", tolerance=_INT8)
    return Reader(kernels="bitsandbytes", load=_load)


def _load(folder: Path, device: str, dtype: torch.dtype | str) -> PreTrainedModel:
    """Layers that its kernel for CPUs with bfloat16 stops at (0.50: an assertion, N must be divisible by block_n) go without it."""
    from bitsandbytes.nn import Linear4bit

    model = from_pretrained(folder, device, dtype)
    for layer in model.modules():
        if isinstance(layer, Linear4bit) and layer.out_features % _OUTPUTS:
            layer.support_avx512bf16_for_cpu = False
    return model


if __name__ == "__main__":
    main(reader_of)
