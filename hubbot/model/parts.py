"""Cuts a checkpoint into the embedding, the decoder blocks and the head, by the names of its tensors.

No architecture is known by name: the decoder is the numbered list with as many members as config.json
says, whatever stands before the number (model.layers.7., gpt_neox.layers.7., transformer.h.7., h.7.,
language_model.model.layers.7.). Where several lists are gone through in turns, again and again, all of them are one block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from hubbot.errors import Unsupported
from hubbot.model.safetensors import TensorInfo

__all__ = ["Part", "PartKind", "blocks_beyond", "in_tower", "part_layout_of"]

_NUMBERED = re.compile(r"((?:[A-Za-z_][A-Za-z0-9_]*\.)*[A-Za-z_][A-Za-z0-9_]*)\.(\d+)\.")
_TOWERS = re.compile(r"(^|[._])(vision|visual|audio|image|speech|encoder)")

# What comes before a model's lists, where all of them are one block: the rest of its body lies beside them.
_EMBEDDING = re.compile(r"embed|(^|\.)wte\.")

# What follows the last block, by the module's own name; everything else outside of blocks comes before.
_HEAD = frozenset(
    "lm_head embed_out output output_norm head norm norm_f ln_f ln_out layer_norm final_norm final_layernorm "
    "final_layer_norm embedding_norm score hyper_connection_mixer project_out".split()
)
_HEADS = re.compile(r"unembed|^hc_(head|pre)")  # Gemma 3n's altup_unembed_projections, what joins several hidden states


class PartKind(StrEnum):
    EMBEDDING = "embedding"
    BLOCK = "block"
    HEAD = "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One stretch of the model: the embedding, block `index`, or what follows the last block."""

    kind: PartKind
    index: int  # of the block; 0 for the embedding and the head
    tensors: tuple[str, ...]  # checkpoint names of every tensor of this part

    @property
    def name(self) -> str:
        return f"block-{self.index:05d}" if self.kind is PartKind.BLOCK else str(self.kind)

    @property
    def in_turns(self) -> bool:
        """Whether it is several lists of blocks at once, which the model goes through in turns."""
        return len({match[1] for name in self.tensors if (match := _NUMBERED.match(name))}) > 1


def part_layout_of(tensors: Mapping[str, TensorInfo], layers: int) -> tuple[Part, ...]:
    """Every tensor in exactly one part, parts in the order of computation; blocks beyond the last go with the head.

    layers: number of decoder blocks that config.json gives; of lists that are gone through again and again also how often
    their blocks are run in all.
    Raises Unsupported where the names show no such list of blocks.
    """
    if body := _around_turns(tensors, layers):
        return _with_one_block(tensors, body)
    blocks = _decoder(tensors, layers)
    inside: dict[int, list[str]] = {index: [] for index in range(layers)}
    before: list[str] = []
    after: list[str] = []
    for name in tensors:
        index = _index(name, blocks)
        if index in inside:
            inside[index].append(name)
        elif index is not None:
            after.append(name)
        else:
            (after if _follows(name, blocks) else before).append(name)
    return (
        Part(kind=PartKind.EMBEDDING, index=0, tensors=tuple(before)),
        *(Part(kind=PartKind.BLOCK, index=index, tensors=tuple(names)) for index, names in inside.items()),
        Part(kind=PartKind.HEAD, index=0, tensors=tuple(after)),
    )


def in_tower(name: str) -> bool:
    """Whether a tensor, by its name, is of a part that sees or hears, which no text passes through."""
    return _TOWERS.search(name) is not None


def blocks_beyond(tensors: Mapping[str, TensorInfo], layers: int) -> dict[str, int]:
    """Tensors of blocks that the decoder's list has beyond the `layers` of config.json -> number of their block."""
    if _around_turns(tensors, layers):
        return {}
    blocks = _decoder(tensors, layers)
    numbers = {name: _index(name, blocks) for name in tensors}
    return {name: index for name, index in numbers.items() if index is not None and index >= layers}


def _decoder(tensors: Mapping[str, TensorInfo], layers: int) -> str:
    """The name of the list of decoder blocks, `model.layers`."""
    lists: dict[str, dict[int, int]] = {}  # list -> index -> bytes
    for name, info in tensors.items():
        if match := _NUMBERED.match(name):
            sizes = lists.setdefault(match[1], {})
            sizes[int(match[2])] = sizes.get(int(match[2]), 0) + info.size
    fitting = {name: sizes for name, sizes in lists.items() if sizes.keys() >= set(range(layers))}
    if not fitting:
        counts = ", ".join(f"{name} with {len(sizes)}" for name, sizes in list(lists.items())[:4]) or "none"
        then = (
            "hubbot walks several lists where they are alike, tensor by tensor, and the number is a multiple of their length; else one, from its first block to its last."
            if sum(not in_tower(name) for name in lists) > 1
            else "The two must agree: fetch the model whole, or name one that hubbot supports."
        )
        msg = f"config.json speaks of {layers} decoder blocks; the checkpoint's names show lists of blocks: {counts}. {then}"
        raise Unsupported(msg)
    return max(fitting, key=lambda name: _likeness(name, fitting[name], layers))


def _around_turns(tensors: Mapping[str, TensorInfo], layers: int) -> str | None:
    """The module around lists of blocks that a model goes through in turns, as HRM's: lists alike, tensor by tensor, of which
    `layers` counts the blocks of one or how often blocks are run in all. None where there are none such."""
    lists: dict[str, dict[tuple[int, str], tuple[int, ...]]] = {}
    for name, info in tensors.items():
        if (match := _NUMBERED.match(name)) and not in_tower(name):
            lists.setdefault(match[1], {})[int(match[2]), name[match.end() :]] = info.shape
    alike = [name for name, found in lists.items() if sum(found == other for other in lists.values()) > 1]
    counts = {len({index for index, _ in lists[name]}) for name in alike}
    if len(alike) != len(lists) or len(counts) != 1 or layers % counts.pop():
        return None
    around = set.intersection(*({*_ancestors(name)} for name in alike))
    return max(around, key=len) or None


def _with_one_block(tensors: Mapping[str, TensorInfo], body: str) -> tuple[Part, ...]:
    """All in a module is one block but for its embedding; what lies outside follows."""
    inside = [name for name in tensors if name.startswith(f"{body}.")]
    before = [name for name in inside if _EMBEDDING.search(name.removeprefix(f"{body}."))]
    return (
        Part(kind=PartKind.EMBEDDING, index=0, tensors=tuple(before)),
        Part(kind=PartKind.BLOCK, index=0, tensors=tuple(name for name in inside if name not in before)),
        Part(kind=PartKind.HEAD, index=0, tensors=tuple(name for name in tensors if name not in inside)),
    )


def _likeness(name: str, sizes: Mapping[int, int], layers: int) -> tuple[bool, bool, int]:
    """How much a list of blocks looks like the decoder: no tower, as long as said, the largest."""
    return not in_tower(name), len(sizes) == layers, sum(sizes.values())


def _index(name: str, blocks: str) -> int | None:
    match = _NUMBERED.match(name)
    return int(match[2]) if match and match[1] == blocks else None


def _follows(name: str, blocks: str) -> bool:
    """Whether a tensor outside of the blocks is used after them: of a norm or head beside the list or above it."""
    above = max((module for module in _ancestors(blocks) if not module or name.startswith(f"{module}.")), key=len)
    own, _, _ = name.removeprefix(above).removeprefix(".").partition(".")
    return own in _HEAD or _HEADS.search(own) is not None


def _ancestors(blocks: str) -> Iterable[str]:
    """`language_model.model.layers` -> language_model.model, language_model and the top."""
    parts = blocks.split(".")[:-1]
    return {".".join(parts[:length]) for length in range(len(parts) + 1)}
