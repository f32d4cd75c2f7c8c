"""compressed-tensors folders read by transformers, which decodes their weights when they are first used, or at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from transformers import CompressedTensorsConfig

from hubbot.formats.check import Reader, from_pretrained, main
from hubbot.formats.stored import holds_experts, quantization_of

__all__ = ["reader_of"]


def reader_of(folder: Path) -> Reader:
    schemes = quantization_of(folder)["config_groups"].values()
    if all(scheme["weights"]["symmetric"] for scheme in schemes) and not holds_experts(folder, ".weight_packed"):
        return Reader(kernels="compressed_tensors")
    # Of experts transformers makes one tensor a block, so their codes must be decoded before; and compressed-tensors 0.20
    # expects packed zero points in their unpacked shape, unless it decodes at once.
    at_once = partial(from_pretrained, quantization_config=CompressedTensorsConfig(dequantize=True))
    return Reader(kernels="compressed_tensors", load=at_once)


if __name__ == "__main__":
    main(reader_of)
