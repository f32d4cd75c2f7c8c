"""Exact sizes of any mix of variants, each asked of its own family before a weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hubbot.domain import Bnb, Gguf, Gptq, Source, Variant
from hubbot.formats.protocol import Cost
from hubbot.settings import Settings

if TYPE_CHECKING:
    from hubbot.model import ModelFacts

__all__ = ["costs_of"]


def costs_of(
    variants: Sequence[Variant], source: Source, facts: ModelFacts, work: Path, settings: Settings
) -> dict[str, Cost]:
    """Variant name -> cost, in the order given. Runs llama.cpp's converter on the headers for GGUF.

    Raises Unsupported or UnsupportedShape where a family cannot make a variant.
    """
    # The families are imported only where they are asked for: each brings a large library along.
    found: dict[str, Cost] = {}
    if ggufs := [variant for variant in variants if isinstance(variant, Gguf)]:
        from hubbot.formats.gguf import format as gguf

        found |= gguf.costs(
            ggufs,
            source,
            facts,
            work,
            settings.gguf,
            text=settings.calibration.name,
            quantized_by=settings.publish.maker,
        )
    if gptqs := [variant for variant in variants if isinstance(variant, Gptq)]:
        from hubbot.formats import gptq

        found |= gptq.costs(gptqs, facts, source, settings.gptq)
    if bnbs := [variant for variant in variants if isinstance(variant, Bnb)]:
        from hubbot.formats import bnb

        found |= bnb.costs(bnbs, facts, source, settings.bnb)
    return {variant.name: found[variant.name] for variant in variants}
