"""bitsandbytes folders read by transformers with bitsandbytes' kernels."""

from __future__ import annotations

from pathlib import Path

from hubbot.formats.check import Reader, main
from hubbot.formats.stored import quantization_of

__all__ = ["reader_of"]

_INT8 = 0.03  # its kernels also round the inputs of each layer to 8 bits, and pass values through float16 on the way


def reader_of(folder: Path) -> Reader:
    int8 = Reader(kernels="bitsandbytes", tolerance=_INT8)
    return int8 if quantization_of(folder).get("load_in_8bit") else Reader(kernels="bitsandbytes")


if __name__ == "__main__":
    main(reader_of)
