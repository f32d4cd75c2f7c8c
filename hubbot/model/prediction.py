"""Blocks that predict tokens after the next one (multi-token prediction), which some checkpoints bring along.

They stand apart (`mtp.layers.0.`, `model.mtp_layers.0.`) or as blocks beyond num_hidden_layers (DeepSeek, GLM). The
model that answers runs without them: transformers leaves them out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hubbot.errors import Unsupported
from hubbot.model.parts import blocks_beyond
from hubbot.model.safetensors import TensorInfo

__all__ = ["note_on", "prediction_paths", "prediction_tensors"]

_APART = re.compile(r"(^|\.)(mtp|nextn)[a-z_]*\.")
_OWN = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head|mtp_[a-z_]+)\.")  # what no ordinary block has
_PLACE = re.compile(
    r".*?(?<![^.])(\d+|(mtp|nextn)[a-z_]*)(?=\.)"
)  # up to the block's number, or the word for such blocks
_SAID = re.compile(r"(^|_)(nextn|mtp)(_|$)")  # num_nextn_predict_layers, mtp_num_hidden_layers, …


def prediction_tensors(tensors: Mapping[str, TensorInfo], layers: int, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the tensors of prediction blocks.

    layers: num_hidden_layers. config: the language model's section of config.json.
    Raises Unsupported for blocks beyond `layers` that nothing says are prediction blocks.
    """
    beyond = blocks_beyond(tensors, layers)
    if beyond and not (_announced(config) or any(_OWN.search(name) for name in beyond)):
        first, last = min(beyond.values()), max(beyond.values())
        msg = (
            f"config.json says num_hidden_layers {layers}, and the checkpoint stores blocks up to {last} ({next(iter(beyond))}); "
            f"nothing says that block {first} predicts further tokens, so transformers would run another model than the stored one. "
            f"The two must agree: set num_hidden_layers to {last + 1} in a copy of the model, or remove these blocks from it."
        )
        raise Unsupported(msg)
    return tuple(name for name in tensors if name in beyond or _APART.search(name))


def prediction_paths(names: Iterable[str]) -> tuple[str, ...]:
    """Where the modules of such blocks lie: `model.layers.61`, `mtp`."""
    found = (_PLACE.match(name) for name in names)
    return tuple(dict.fromkeys(match[0] for match in found if match))


def note_on(names: Iterable[str]) -> tuple[str, ...]:
    """What plan and record say of them."""
    found = tuple(names)
    if not found:
        return ()
    some = f"{len(found)} tensors ({found[0]}, …) are" if len(found) > 1 else f"{found[0]} is"
    return (
        f"{some} of a block that predicts further tokens (MTP): no part of the model that is measured, "
        "never quantized, kept whole in the folders for transformers",
    )


def _announced(config: Mapping[str, Any]) -> bool:
    return any(type(value) is int and value > 0 and _SAID.search(key) for key, value in config.items())
