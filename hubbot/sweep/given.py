"""What a model's forward gives to its decoder blocks: hidden states, and arguments beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from hubbot.errors import SourceRefused

__all__ = ["BlockArguments", "Companion", "Given", "Key", "Layout", "Passable", "companions_of", "shared_mappings"]

Key: TypeAlias = int | str  # of an argument: its place or its name


@dataclass(frozen=True, slots=True)
class BlockArguments:
    """What a model's forward hands to one decoder block besides the hidden states."""

    positional: tuple[Any, ...]
    named: dict[str, Any]

    def by_key(self) -> dict[Key, Any]:
        placed: dict[Key, Any] = dict(enumerate(self.positional))
        return placed | self.named

    def replaced(self, values: Mapping[Key, Any]) -> BlockArguments:
        """With other values for some of them."""
        if not values:
            return self
        positional = tuple(values.get(place, value) for place, value in enumerate(self.positional))
        return BlockArguments(positional, {name: values.get(name, value) for name, value in self.named.items()})

    def with_tensors(self, changed: Callable[[torch.Tensor], torch.Tensor]) -> BlockArguments:
        """With what every tensor changes to, those in tuples and lists too."""
        positional, named = _with_tensors((self.positional, list(self.named.values())), changed)
        return BlockArguments(positional, dict(zip(self.named, named, strict=True)))


def _with_tensors(value: Any, changed: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    match value:
        case torch.Tensor():
            return changed(value)
        case tuple() | list():
            return type(value)(_with_tensors(each, changed) for each in value)
        case _:
            return value


@dataclass(frozen=True, slots=True)
class Given:
    """What the blocks were given in one forward. hidden: the first one's."""

    hidden: torch.Tensor
    blocks: list[BlockArguments]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where windows and tokens lie in a tensor that a block is given.

    windows, tokens: their dimensions. rest: the sizes of the others, in their order.
    """

    windows: int
    tokens: int
    rest: tuple[int, ...]

    @classmethod
    def between(cls, one: torch.Size, more_windows: torch.Size, more_tokens: torch.Size) -> Layout | None:
        """By the shapes of one thing for other numbers of windows and tokens; None where it has not one dimension of each."""
        if not len(one) == len(more_windows) == len(more_tokens):
            return None
        windows, tokens = (
            [place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
            for other in (more_windows, more_tokens)
        )
        if len(windows) != 1 or len(tokens) != 1 or windows == tokens:
            return None
        rest = tuple(size for place, size in enumerate(one) if place not in (*windows, *tokens))
        return cls(windows=windows[0], tokens=tokens[0], rest=rest)

    @property
    def width(self) -> int:
        """Numbers a token."""
        return math.prod(self.rest)

    def rows(self, given: torch.Tensor) -> torch.Tensor:
        """As a block is given it -> [windows, length, width]."""
        first = given.movedim((self.windows, self.tokens), (0, 1))
        return first.reshape(*first.shape[:2], self.width)

    def given(self, rows: torch.Tensor) -> torch.Tensor:
        """[windows, length, width] -> as a block is given it."""
        return rows.reshape(*rows.shape[:2], *self.rest).movedim((0, 1), (self.windows, self.tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """An argument of a block that goes with each token and depends on nothing else: a per-layer embedding, the first one.

    table: its number; blocks that are given one and the same tensor share one.
    """

    block: int
    key: Key
    table: int
    layout: Layout
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Of one token."""
        return self.layout.width * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Passable:
    """What passes from block to block.

    layout: of the hidden states. shared: by block, the arguments that are mappings which blocks write and read.
    handed: by block, the arguments that an earlier block has returned beside its hidden states, with their place in that.
    left: numbers a token that blocks leave for later ones so, after the last block.
    """

    layout: Layout
    companions: tuple[Companion, ...]
    shared: tuple[frozenset[Key], ...]
    handed: tuple[Mapping[Key, int], ...]
    left: int

    @property
    def alone(self) -> bool:
        """Whether nothing but the hidden states passes from one block to the next."""
        return not (any(self.shared) or any(self.handed))

    @property
    def stream_width(self) -> int:
        """Numbers a token that each stream holds."""
        return self.layout.width + self.left

    @property
    def companion_bytes(self) -> tuple[int, ...]:
        """A token, of each table."""
        return tuple({each.table: each.bytes for each in self.companions}.values())


def companions_of(
    same: Given, mixed: Given, backwards: Given, more_windows: Given, more_tokens: Given
) -> tuple[Companion, ...]:
    """What of the arguments goes with the tokens; raises ValueError where something depends on the text in another way,
    SourceRefused for what is no number.

    same: of one window of one token repeated. mixed: of other tokens. backwards: of these in turned order.
    """
    found: list[Companion] = []
    tables: dict[int, int] = {}  # identity of a tensor -> its number
    for block, arguments in enumerate(same.blocks):
        others = mixed.blocks[block].by_key()
        for key, value in arguments.by_key().items():
            if _same(value, others[key]):
                continue
            _refuse_no_numbers(key, value)
            shapes = [each.blocks[block].by_key()[key] for each in (same, more_windows, more_tokens)]
            if not all(isinstance(each, torch.Tensor) and not each.is_meta for each in shapes):
                msg = f"What they are given changes with the text ({key})."
                raise ValueError(msg)
            layout = Layout.between(*(each.shape for each in shapes))
            turned = backwards.blocks[block].by_key()[key]
            if layout is None or not torch.equal(layout.rows(turned), layout.rows(others[key]).flip(1)):
                msg = f"What they are given changes with more of the text than the token that it goes with ({key})."
                raise ValueError(msg)
            table = tables.setdefault(id(value), len(tables))
            found.append(Companion(block=block, key=key, table=table, layout=layout, dtype=value.dtype))
    return tuple(found)


def _refuse_no_numbers(key: Key, value: Any) -> None:
    """NaN equals nothing, so that it would be taken for something that changes with the text."""

    def look(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and not tensor.is_meta and tensor.isnan().any():
            msg = (
                f"Beside the hidden states the model's blocks are given what is no number ({key}), as a rope_theta of 0 in config.json leads to. "
                "Correct the value in a copy of the model, or ask the author."
            )
            raise SourceRefused(msg)
        return tensor

    _with_tensors(value, look)


def shared_mappings(blocks: Sequence[BlockArguments]) -> tuple[frozenset[Key], ...]:
    """By block, the arguments that are empty mappings: what one block leaves there, later ones read (keys and values)."""
    return tuple(
        frozenset(key for key, value in arguments.by_key().items() if isinstance(value, MutableMapping) and not value)
        for arguments in blocks
    )


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments hold equal tensors in the same places; what is neither tensor nor container counts as equal."""
    match one:
        case torch.Tensor():
            return not one.is_meta and isinstance(other, torch.Tensor) and torch.equal(one, other)
        case dict():
            return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
        case tuple() | list():
            return len(one) == len(other) and all(map(_same, one, other))
        case _:
            return True
