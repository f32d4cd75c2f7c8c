"""A card's program on the CPU: the same text, compiled by a C++ compiler, its kernels as plain loops."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import torch

from hubbot import llamacpp
from hubbot.formats.gguf.codec import type_named
from hubbot.formats.gguf.cuda.codec import CardCodec
from hubbot.formats.gguf.cuda.grids import GRIDS, tables
from hubbot.formats.gguf.cuda.program import program
from hubbot.formats.gguf.cuda.text import GgmlText

CPU = torch.device("cpu")
EXACT = ("-O2", "-ffp-contract=off", "-fno-strict-aliasing")


class HostModule:
    """Launches as hubbot.formats.gguf.cuda.card.Module does."""

    def __init__(self, text: str, folder: Path, options: tuple[str, ...] = EXACT) -> None:
        source, library = folder / "program.cpp", folder / "program.so"
        source.write_text(text, encoding="utf-8")
        subprocess.run(["c++", *options, "-w", "-shared", "-fPIC", source, "-o", library], check=True)
        self._library = ctypes.CDLL(str(library))

    def launch(self, name: str, count: int, *arguments: torch.Tensor | int | None) -> None:
        values = [
            ctypes.c_int(value)
            if isinstance(value, int)
            else ctypes.c_void_p(None if value is None else value.data_ptr())
            for value in arguments
        ]
        getattr(self._library, name)(ctypes.c_longlong(count), *values)


def text() -> GgmlText:
    return GgmlText(llamacpp.find().source)


def host_codec(name: str, folder: Path, options: tuple[str, ...] = EXACT) -> CardCodec:
    module = HostModule(program(text(), name), folder, options)
    grid = GRIDS.get(name)
    found = None
    if grid:
        found = tables(text(), grid, CPU)
        module.launch("set_grid", 1, grid.slot, found.points, found.map, found.neighbours)
    return CardCodec(type_named(name), name, module, found)
