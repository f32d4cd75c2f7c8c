"""compressed-tensors folders read by transformers, which decodes their weights on loading.

Left to itself it decodes a layer when that is first used: too late for experts, of which it makes one tensor a block, for
state spaces, whose code looks at weights before, and for zero points, whose packed shape compressed-tensors 0.20 then refuses.
But where it cuts tensors of a checkpoint into several layers (HRM's query, key and value), it cannot decode ahead at all.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from transformers import CompressedTensorsConfig

from hubbot.formats.check import Reader, from_pretrained, main
from hubbot.model.empty import build_model
from hubbot.model.mapping import cuts_tensors

__all__ = ["reader_of"]


def reader_of(folder: Path) -> Reader:
    if cuts_tensors(build_model(folder)):
        return Reader(kernels="compressed_tensors", load=from_pretrained)
    at_once = partial(from_pretrained, quantization_config=CompressedTensorsConfig(dequantize=True))
    return Reader(kernels="compressed_tensors", load=at_once)


if __name__ == "__main__":
    main(reader_of)
