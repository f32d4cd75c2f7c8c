"""What the sweep asks of a family of formats, and what it gives.

The sweep cuts a model into parts: the embedding, every decoder block, the head. It walks them in
that order and hands each part to every format. Weights are named as in the checkpoint
(`model.layers.3.self_attn.q_proj.weight`), in the checkpoint's own layout.

    open(...)                     once, before the first part
    encode(part, weights, stats)  once a part, in order; again for a part when a killed run resumes
    holds(part)                   whether that part is stored, by this run or an earlier, killed one
    finish()                      once, after the last part: the files, whole and hashed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hubbot.domain import LoadCheck, Named
from hubbot.model.chat import Tokens
from hubbot.model.parts import Part

if TYPE_CHECKING:
    import torch  # takes seconds to import, which planning does without

    from hubbot.model.finite import Large


class Needs(Enum):
    """Which statistics of a linear layer's inputs a family wants."""

    NOTHING = 0
    SQUARES = 1  # mean square of each input feature: llama.cpp's importance matrix
    HESSIAN = 2  # the full X'X
    GRADIENTS = 3  # and what errors of its outputs do to the loss of the whole model

    @property
    def hessian(self) -> bool:
        return self.value >= Needs.HESSIAN.value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Band:
    """Outputs of layers that share their inputs, and what errors of theirs do to the loss of the whole model together.

    rows: checkpoint name of a layer's weight -> its outputs that are in the band, one layer behind the other.
    matrix: float32 [outputs, outputs], mean over tokens of g g', g the gradient of the loss with respect to them.
    """

    rows: Mapping[str, slice]
    matrix: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStatistics:
    """What the calibration windows said about one linear layer's inputs x.

    squares: float32 [in_features], sum over tokens of x_j^2.
    hessian: float32 [in_features, in_features], sum over tokens of x x', or None if nobody needs it.
    tokens: how many rows x were summed.
    bands: of the outputs of all layers with these inputs, where somebody needs them; no output is in two of them.
    """

    squares: torch.Tensor
    hessian: torch.Tensor | None
    tokens: int
    bands: tuple[Band, ...] = ()


# Share of a block's tokens up to which an expert has no statistics of its own to speak of; GPTQModel draws the same line.
FEWEST_TOKENS = 0.005


def expert_name(name: str, expert: int) -> str:
    """The name under which statistics of one expert go, where a checkpoint tensor holds all experts of a block."""
    return f"{name}[{expert}]"


class Encoded(Protocol):
    """One tensor in its published form."""

    def decode(self) -> torch.Tensor:
        """The weight that a reader of the published bytes computes with.

        float32, the checkpoint's shape and row order, on the CPU or the sweep's device.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a variant will come to, known before any weight is read."""

    file_bytes: int  # of all its files together
    weight_bytes: int  # of the weight tensors alone
    bits_per_weight: float  # 8 * weight_bytes / number of weights
    note: str | None = None  # what the plan should say of it
    probes: int = 0  # that have to be measured first; the sizes are then the most that it will come to


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFiles:
    """What a variant came to on disk."""

    paths: tuple[Path, ...]  # absolute; everything that belongs to the variant's release
    weight_bytes: int  # bytes of the weight tensors, without headers, tokenizer and configuration
    weights: int | None = None  # how many these bytes hold; None: all of the checkpoint
    notes: tuple[str, ...] = ()
    layer_errors: Mapping[str, float] = field(default_factory=dict)  # checkpoint tensor -> relative squared error


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a variant's own runtime made of its files."""

    check: LoadCheck
    continuations: tuple[tuple[int, ...], ...] = ()  # greedy tokens after each prompt, if the file loaded
    tokens: Tokens | None = None  # of the chat that it was given, if the file loaded
    notes: tuple[str, ...] = ()  # what came up on the way and is not the file's fault, a sentence each


class Format(Protocol):
    """One family's variants, written while the sweep walks the model."""

    @property
    def family(self) -> str:
        """What its time is recorded under."""
        ...

    @property
    def variants(self) -> Sequence[Named]: ...

    @property
    def needs(self) -> Needs: ...

    def holds(self, part: Part) -> bool:
        """Whether this part is stored whole, by this run or an earlier one, so that a sweep may go on after it.

        Waits for what `encode` is still writing.
        """
        ...

    def encode(
        self, part: Part, weights: Mapping[str, torch.Tensor], statistics: Mapping[str, InputStatistics]
    ) -> Mapping[str, Mapping[str, Encoded]]:
        """Encode and store every tensor of a part for every variant; what is still being written, `holds` waits for.

        weights: checkpoint name -> source tensor as stored (any float dtype, CPU or the sweep's device).
        statistics: checkpoint name of a linear layer's weight -> its inputs' statistics; empty for the
            embedding, and for a head that is the embedding.
        Returns variant name -> checkpoint name -> encoded tensor, for the tensors whose decoded value
        differs from the source. The same Encoded object may serve several variants. Calling it again
        for the same part writes the same bytes to the same place.
        """
        ...

    def finish(self) -> Mapping[str, VariantFiles]:
        """Complete, flush and rename the files. Returns variant name -> its files."""
        ...


def large_notes(large: Mapping[str, Large]) -> tuple[str, ...]:
    """What is to be known of every variant of a model with weights beyond float16."""
    matrices = {name: found for name, found in large.items() if len(found.index) > 1}  # a mask's constant is no weight
    if not matrices:
        return ()
    tensor, first = next(iter(matrices.items()))
    more = f" ({len(matrices)} tensors in all)" if len(matrices) > 1 else ""
    return (
        f"{tensor} holds {first.value:,.0f} at {list(first.index)}{more}, beyond float16's 65,504: weights that share a scale "
        "with it are rounded away, and so are activations where a runtime rounds them to 8 bits, as llama.cpp does",
    )


def beyond_float16(variant: str, tensor: str, large: Large) -> str:
    """Why a variant whose numbers pass through float16 cannot be made."""
    return (
        f"{tensor} holds {large.value:,.0f} at {list(large.index)}, and {variant} passes through float16, whose largest number is "
        "65,504: the weight would become infinite. Take a variant that holds it, such as BF16, or mend the layer."
    )
