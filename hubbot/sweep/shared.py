"""What a block leaves for later ones beside its hidden states: keys and values that several blocks attend to, or which
tokens they attend to. It is put into a mapping that all blocks are given, or returned and given to the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import torch

from hubbot.errors import Unsupported
from hubbot.sweep.given import Key

__all__ = ["SharedStates", "handed_on", "keep_returned"]

_RETURNED = "returned {}"  # under which name it is kept, by its place in what a block returns


def keep_returned(out: Any, handed: Iterable[Mapping[Key, int]], states: MutableMapping[Any, Any]) -> None:
    """Keep what a block has returned beside its hidden states at the places that are handed on to any block."""
    for place in {place for places in handed for place in places.values()}:
        if isinstance(out, tuple) and place < len(out) and isinstance(out[place], torch.Tensor):
            states[_RETURNED.format(place)] = (out[place],)


def handed_on(places: Mapping[Key, int], states: Mapping[Any, Any]) -> dict[Key, torch.Tensor | None]:
    """A block's arguments that an earlier one has returned, by their places in that; None where none has."""
    return {key: states.get(_RETURNED.format(place), (None,))[0] for key, place in places.items()}


class SharedStates(MutableMapping[Any, tuple[torch.Tensor, ...]]):
    """The mapping that a block is given, of some windows of one stream: what is asked for comes to the device.

    states: name -> tensors of all windows, which what the block leaves is put into. room: makes a tensor like it, of all
    windows and uninitialized.
    """

    def __init__(
        self,
        states: dict[str, torch.Tensor],
        windows: slice,
        device: torch.device,
        room: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self._states = states
        self._windows = windows
        self._device = device
        self._room = room

    def __getitem__(self, key: Any) -> tuple[torch.Tensor, ...]:
        names = self._names(key)
        if not names:
            raise KeyError(key)
        return tuple(self._states[name][self._windows].to(self._device) for name in names)

    def __setitem__(self, key: Any, value: tuple[torch.Tensor, ...]) -> None:
        for number, tensor in enumerate(value):
            if tensor.shape[0] != self._windows.stop - self._windows.start:
                msg = f"A block leaves {list(tensor.shape)} for later ones ({key}), which are not so many windows. This model is not supported yet."
                raise Unsupported(msg)
            name = f"{key}.{number}"
            if name not in self._states:
                self._states[name] = self._room(tensor)
            self._states[name][self._windows] = tensor.to(self._states[name].device)

    def __delitem__(self, key: Any) -> None:
        for name in self._names(key):
            del self._states[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.rpartition(".")[0] for name in self._states))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _names(self, key: Any) -> list[str]:
        names = (f"{key}.{number}" for number in range(len(self._states)))
        return [name for name in names if name in self._states]
