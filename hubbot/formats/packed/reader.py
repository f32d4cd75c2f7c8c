"""compressed-tensors folders read by transformers, which decodes their weights on loading.

Left to itself it decodes a layer when that is first used: too late for experts, of which it makes one tensor a block, for
state spaces, whose code looks at weights before, and for zero points, whose packed shape compressed-tensors 0.20 then refuses.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from transformers import CompressedTensorsConfig

from hubbot.formats.check import Reader, from_pretrained, main

__all__ = ["reader_of"]


def reader_of(folder: Path) -> Reader:  # noqa: ARG001 - all folders are read alike
    at_once = partial(from_pretrained, quantization_config=CompressedTensorsConfig(dequantize=True))
    return Reader(kernels="compressed_tensors", load=at_once)


if __name__ == "__main__":
    main(reader_of)
