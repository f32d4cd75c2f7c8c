"""Variants with -e2e: whom the loss of the whole model weighs, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hubbot.errors import Unsupported
from hubbot.formats.gptq.choice import Choice
from hubbot.formats.linears import Linear
from hubbot.formats.protocol import Band, InputStatistics
from hubbot.model import ModelFacts
from hubbot.model.parts import Part

__all__ = ["NOTE", "bands_of", "is_weighed", "refuse_undifferentiated", "unweighed"]

NOTE = (
    "codes chosen by what their errors do to the predictions of the whole model on the calibration text, those of layers with the "
    "same inputs together; format and size are those of the variant without -e2e"
)


def refuse_undifferentiated(name: str, facts: ModelFacts) -> None:
    """What a block computes of more than its hidden states is not walked back through, nor what torch has no derivative of."""
    why: str | None = None
    if facts.stream_width not in (None, facts.hidden_size):
        why = (
            f"blocks of {facts.architecture} are given more of earlier blocks than the hidden states of the one before"
        )
    elif facts.undifferentiated:
        why = f"torch passes none back through a block of {facts.architecture} ({facts.undifferentiated})"
    if why:
        msg = (
            f"{name} weighs errors by gradients that pass back from block to block, and {why}. "
            f"Ask for {name.removesuffix('-e2e')}."
        )
        raise Unsupported(msg)


def bands_of(layers: Iterable[Linear], statistics: Mapping[str, InputStatistics]) -> list[Band]:
    """Of the outputs of these layers, each once."""
    return list({id(band): band for layer in layers for band in statistics[layer.statistics].bands}.values())


def is_weighed(name: str, bands: Sequence[Band]) -> bool:
    return any(name in band.rows for band in bands)


def unweighed(
    part: Part, choice: Choice, here: Sequence[Linear], statistics: Mapping[str, InputStatistics]
) -> list[str]:
    """What a reader of the record should know of a part's layers that the loss of the whole model did not weigh."""
    rounded = [layer for layer in here if layer.name in choice.rounded]
    plain = [layer for layer in rounded if not is_weighed(layer.name, statistics[layer.statistics].bands)]
    if not plain:
        return []
    return [
        f"{part.name}: {len(plain)} of {len(rounded)} matrices have no gradients of their own and were rounded without them"
    ]
