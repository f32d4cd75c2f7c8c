"""ggml types on a card: each is used only after its bytes were seen to be ggml's, on this card, in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from hubbot import llamacpp, log
from hubbot.formats.gguf import agreement, codec
from hubbot.formats.gguf.cuda.card import CardRefused, Launcher, Module
from hubbot.formats.gguf.cuda.compiler import CompilerMissing, cubin
from hubbot.formats.gguf.cuda.grids import GRIDS, Tables, tables
from hubbot.formats.gguf.cuda.program import PROGRAMS, block_size, program, weighs_rows
from hubbot.formats.gguf.cuda.text import GgmlText, TextChanged

__all__ = ["LOST", "NOT_FINITE", "CardCodec", "CardFloats", "agrees", "card_codec", "card_codecs"]

NOT_FINITE, LOST = 1, 2  # as in prelude.h
_FLOATS = {codec.F32: torch.float32, codec.F16: torch.float16, codec.BF16: torch.bfloat16}
_COLUMNS = 1024


@dataclass(frozen=True, slots=True)
class CardCodec:
    """One type's encoder and decoder. Calls work on the current stream; encodes of one type share a flag, so keep to one."""

    kind: int
    name: str
    module: Launcher
    tables: Tables | None  # kept alive: the module points into them

    def encode(self, rows: torch.Tensor, importance: torch.Tensor | None, out: torch.Tensor, odd: torch.Tensor) -> None:
        """rows: float32 [n, columns] on the card. importance: float32 [columns]. out: uint8, as ggml would write it.

        odd: int32 [1], gets NOT_FINITE or LOST or both where some block's bytes are not to be used.
        """
        columns = rows.shape[1]
        mean_squares = None
        if importance is not None and weighs_rows(self.name):
            mean_squares = torch.empty(rows.shape[0], device=rows.device)
            self.module.launch("sigma2", rows.shape[0], rows, mean_squares, columns)
        self.module.launch(
            "encode", rows.numel() // block_size(self.name), rows, out, columns, importance, mean_squares
        )
        self.module.launch("take_odd", 1, odd)

    def decode(self, data: torch.Tensor, out: torch.Tensor) -> None:
        """data: uint8 on the card -> out: float32, all its elements."""
        self.module.launch("decode", out.numel() // block_size(self.name), data, out)


@dataclass(frozen=True, slots=True)
class CardFloats:
    """The types that are floats: torch rounds them as ggml does."""

    kind: int

    def encode(self, rows: torch.Tensor, importance: torch.Tensor | None, out: torch.Tensor, odd: torch.Tensor) -> None:  # noqa: ARG002
        values = rows.to(_FLOATS[self.kind])
        out.copy_(values.view(torch.uint8).reshape(-1))
        odd.copy_((~values.isfinite().all()).to(torch.int32) * NOT_FINITE)

    def decode(self, data: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(data.view(_FLOATS[self.kind]).reshape(out.shape))


_known: dict[tuple[int, torch.device], CardCodec | CardFloats | None] = {}
_lock = threading.Lock()


def card_codec(kind: int, device: torch.device) -> CardCodec | CardFloats | None:
    """A type on a card; None where the CPU has to do, which is said once."""
    with _lock:
        if (kind, device) not in _known:
            _known[kind, device] = _opened(kind, device)
    return _known[kind, device]


def card_codecs(kinds: Iterable[int], device: torch.device) -> None:
    """Compile the programs of several types at once, ahead of their first use."""
    with ThreadPoolExecutor(16, thread_name_prefix="nvrtc") as pool:
        pool.map(lambda kind: _code(kind, device), kinds)
    for kind in kinds:
        card_codec(kind, device)


def _opened(kind: int, device: torch.device) -> CardCodec | CardFloats | None:
    try:
        found = CardFloats(kind) if kind in _FLOATS else _loaded(kind, device)
    except (TextChanged, CompilerMissing, CardRefused, OSError) as problem:
        log.say(f"{codec.type_name(kind)} is encoded on the CPU: {problem}")
        return None
    if not agrees(kind, found, device):
        log.say(f"{codec.type_name(kind)} is encoded on the CPU: on this card its bytes are not ggml's")
        return None
    return found


def _loaded(kind: int, device: torch.device) -> CardCodec:
    name = codec.type_name(kind)
    module = Module(_program_code(name, device), device)
    if name not in GRIDS:
        return CardCodec(kind, name, module, None)
    grid = GRIDS[name]
    found = tables(GgmlText(llamacpp.find().source), grid, device)
    module.launch("set_grid", 1, grid.slot, found.points, found.map, found.neighbours)
    return CardCodec(kind, name, module, found)


def _program_code(name: str, device: torch.device) -> bytes:
    if name not in PROGRAMS:
        raise TextChanged(f"there is no program for {name}")
    return cubin(program(GgmlText(llamacpp.find().source), name), torch.cuda.get_device_capability(device))


def _code(kind: int, device: torch.device) -> None:
    """Fill the cache of machine code; what goes wrong here goes wrong again, and is told, where the code is wanted."""
    try:
        _program_code(codec.type_name(kind), device)
    except (TextChanged, CompilerMissing, OSError):
        return


def agrees(kind: int, found: CardCodec | CardFloats, device: torch.device) -> bool:
    """Whether encoder and decoder give ggml's bytes and values, row by row; rows that the encoder calls odd do not count."""
    rows = np.concatenate(
        [
            agreement.plain_rows(_COLUMNS),
            agreement.straining_rows(_COLUMNS, large=codec.type_name(kind) not in GRIDS),
        ]
    )
    vectors: list[codec.Floats | None] = [agreement.importance(_COLUMNS)]
    if not codec.requires_importance(kind):
        vectors.append(None)
    return all(_agrees_with(kind, found, rows, vector, device) for vector in vectors)


def _agrees_with(
    kind: int, found: CardCodec | CardFloats, rows: codec.Floats, vector: codec.Floats | None, device: torch.device
) -> bool:
    width = codec.row_bytes(kind, _COLUMNS)
    on_card = torch.from_numpy(rows).to(device)
    importance = None if vector is None else torch.from_numpy(vector).to(device)
    data = torch.zeros((len(rows), width), dtype=torch.uint8, device=device)
    odd = torch.zeros(len(rows), dtype=torch.int32, device=device)
    for index in range(len(rows)):
        found.encode(on_card[index : index + 1], importance, data[index], odd[index : index + 1])
    values = torch.empty_like(on_card)
    found.decode(data.reshape(-1), values)
    usable = (odd == 0).cpu().numpy()
    ours, ours_back = data.cpu().numpy()[usable], values.cpu().numpy()[usable]
    theirs, theirs_back = np.zeros_like(ours), np.zeros_like(ours_back)
    library = llamacpp.ggml()
    library.ggml_quantize_init(kind)
    wanted = np.ascontiguousarray(rows[usable])
    pointer = None if vector is None else vector.ctypes.data
    library.ggml_quantize_chunk(kind, wanted.ctypes.data, theirs.ctypes.data, 0, *wanted.shape, pointer)
    codec.decode_rows(kind, ours.reshape(-1), theirs_back)
    same_values = np.array_equal(ours_back.view(np.uint32), theirs_back.view(np.uint32))
    return bool(usable.any()) and np.array_equal(ours, theirs) and same_values
