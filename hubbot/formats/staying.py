"""What plan and record say of layers that stay at 16 bits."""

from __future__ import annotations

from collections.abc import Sequence

from hubbot.formats.linears import Linear

__all__ = ["LENT", "TAKEN", "note_on_staying", "weights_in"]

LENT = "several blocks compute with them"
TAKEN = "the model's own code takes their weights"


def note_on_staying(layers: Sequence[Linear], why: str, *, of: Sequence[Linear]) -> str | None:
    """None where none stay. of: all layers, that a share is told of."""
    if not layers:
        return None
    first, share = layers[0], weights_in(layers) / weights_in(of)
    stay = "1 layer stays" if len(layers) == 1 else f"{len(layers)} layers stay"
    return (
        f"{stay} at 16 bits, {share:.1%} of the layers' weights: {why}, "
        f"{first.name} [{first.out_features}, {first.in_features}] the first"
    )


def weights_in(layers: Sequence[Linear]) -> int:
    """How many they have."""
    return sum(layer.weights for layer in layers)
