"""The loops of rounding by the whole Hessian that go column by column, compiled for the CPU (descent.c).

    python -m hubbot.formats.gguf.descent     build the library beside llama.cpp's, as `hubbot setup` does

`round_span` in rounding.py and `refine_span` in refinement.py define what they do and do it where the library is absent or the CPU too old.
On a card hubbot/kernels/blocks.py takes their place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from hubbot.formats.gguf import compiled
from hubbot.formats.gguf.state import State
from hubbot.machine import cores

__all__ = ["SPAN", "Loops", "build", "loops_on"]

SPAN = 256  # columns that are told of each other's moves before all others are; descent.c has room for no more
_FEATURES = 16  # that lie side by side in descent.c


class _Layout(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("block", "group")),
        *((name, ctypes.c_float) for name in ("least", "most", "least_scale", "most_scale", "most_minimum")),
    )


class _Blocks(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("d", "dmin", "scale", "minimum", "steps"))


def build() -> None:
    """Compile the library into llama.cpp's build folder, unless it is there. Raises ToolMissing where that fails."""
    if not compiled.place("descent").is_file():
        text = compiled.source("descent").read_text(encoding="utf-8")
        compiled.build("descent", text, flags=["-ffp-contract=fast"])


def loops_on(tensor: torch.Tensor) -> Loops | None:
    """The compiled loops for a tensor on the CPU; None on a card and where they are not built."""
    return None if tensor.is_cuda else _load()


@cache
def _load() -> Loops | None:
    library = compiled.library("descent")
    return Loops(library) if library else None


@dataclass(frozen=True, slots=True)
class Loops:
    """Each call is cut up among the cores, by output features: these never meet, so the results are the same for any number."""

    _library: Any

    def round_span(
        self, rest: torch.Tensor, factor: torch.Tensor, order: torch.Tensor, state: State, lost: torch.Tensor
    ) -> torch.Tensor:
        """See the twin."""
        errors, factor = (
            torch.empty_like(rest),
            factor.contiguous(),
        )  # cut out, its rows would meet in the same lines of a cache
        columns, out = rest.shape
        given = (_pointer(order), _pointer(rest), _pointer(factor))
        after = (*_of(state), _pointer(errors), _pointer(lost))
        _shared(out, lambda *some: self._library.round_span(ctypes.c_int32(columns), *some, *given, *after))
        return errors

    def refine_span(
        self,
        state: State,
        hessian: torch.Tensor,
        pull: torch.Tensor,
        wanted: torch.Tensor,
        lost: torch.Tensor,
        won: torch.Tensor,
    ) -> None:
        """See the twin."""
        columns, out = pull.shape
        given = (_pointer(hessian), _pointer(pull), _pointer(wanted))
        after = (*_of(state), _pointer(lost), _pointer(won))
        _shared(out, lambda *some: self._library.refine_span(ctypes.c_int32(columns), *some, *given, *after))

    def left_over(self, state: State, wanted: torch.Tensor) -> torch.Tensor:
        """What is wanted, [in, out], less what the blocks come to."""
        lost = torch.empty_like(wanted)
        columns, out = wanted.shape
        after = (*_of(state), _pointer(lost))
        _shared(out, lambda *some: self._library.left_over(ctypes.c_int32(columns), *some, _pointer(wanted), *after))
        return lost


def _of(state: State) -> tuple[Any, Any]:
    layout = state.layout
    numbers = _Layout(layout.block, layout.group, *layout.steps, *layout.scales, layout.minimums)
    blocks = _Blocks(*(_pointer(part) for part in (state.d, state.dmin, state.scale, state.minimum, state.steps)))
    return ctypes.byref(numbers), ctypes.byref(blocks)


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Of a tensor whose rows follow one another."""
    if not tensor.is_contiguous():
        msg = f"a tensor of {tuple(tensor.shape)} has strides {tensor.stride()}"
        raise ValueError(msg)
    return ctypes.c_void_p(tensor.data_ptr())


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="descent")


def _shared(out: int, call: Callable[..., None]) -> None:
    """Call with (out, first, last) for a piece of the output features a core."""
    pieces = -(-out // _FEATURES)
    each = -(-pieces // cores()) * _FEATURES
    ranges = [(out, first, min(first + each, out)) for first in range(0, out, each)]
    if len(ranges) == 1:
        call(*(ctypes.c_int64(number) for number in ranges[0]))
        return
    list(_pool().map(lambda some: call(*(ctypes.c_int64(number) for number in some)), ranges))


if __name__ == "__main__":
    compiled.main(build)
