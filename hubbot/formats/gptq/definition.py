"""How GPTQModel reads a model: which layers it takes codes for, and what it calls every other tensor.

It reads files of experts alone, and some others, by exact names: transformers' own modules, in whose place its defuser puts a layer for
each matrix of each expert. So what it has no place for would stay random, in silence; the plan asks it first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from hubbot.confine.ask import NoAnswer, ask
from hubbot.errors import Unsupported
from hubbot.formats.linears import Linear, Linears
from hubbot.machine.versions import INSTALL
from hubbot.model import ModelFacts
from hubbot.model.empty import build_model
from hubbot.model.rotation import rotated_whole

__all__ = ["GPTQMODEL_ALONE", "Definition", "Names", "definition_of", "names_for"]

# Types of which transformers 5.23 wants to initialize weights that codes have replaced (c_proj, out_proj), or passes over the layers
# (FalconLinear, one of HRM's two lists of blocks).
GPTQMODEL_ALONE = frozenset({"gpt2", "gpt-sw3", "gpt_bigcode", "falcon", "falcon_mamba", "hrm_text"})

_PATIENCE = 600.0  # seconds; it takes ten, most of them for imports
_LEFT = 1 / 3  # share of the layers' weights that may stay as they are because it takes no codes for them
_PARTIAL = "partial_rotary_factor"
_ELSE = "Leave GPTQ variants out for this model."
_PACKED = "Leave GPTQ variants out for this model, or make w4a16-128g: the same codes under the checkpoint's own names, as vLLM reads them."


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """layers: module path -> outputs and inputs. tensors: names of all that is no code. fault: why it cannot compute the model."""

    layers: Mapping[str, tuple[int, int]]
    tensors: frozenset[str]
    fault: str | None

    def has(self, tensor: str) -> bool:
        """Whether it reads a tensor of that name: one that is no code, or the bias of a layer of codes."""
        module, _, kind = tensor.rpartition(".")
        return tensor in self.tensors or (kind == "bias" and module in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """names: checkpoint tensor -> what the files call it, where that is another name. left: layers that stay as they are."""

    names: Mapping[str, str]
    left: tuple[Linear, ...]


def definition_of(folder: Path) -> Definition:
    """Raises Unsupported where GPTQModel is missing or fails."""
    return _definition(folder, (folder / "config.json").read_bytes())


@lru_cache(maxsize=4)
def _definition(folder: Path, config: bytes) -> Definition:  # noqa: ARG001 - by what config.json says
    if find_spec("gptqmodel") is None:
        msg = f"Only GPTQModel reads this model's codes, and it is not installed. {INSTALL['gptqmodel']}"
        raise Unsupported(msg)
    try:
        said = ask([sys.executable, "-P", "-m", "hubbot.formats.gptq.in_gptqmodel", str(folder)], seconds=_PATIENCE)
    except NoAnswer as error:
        msg = f"GPTQModel, which reads these files, cannot build the model: its process {error}. {_ELSE}"
        raise Unsupported(msg) from None
    found = json.loads(said.splitlines()[-1])
    layers = {path: (outputs, inputs) for path, (outputs, inputs) in found["layers"].items()}
    return Definition(layers=layers, tensors=frozenset(found["tensors"]), fault=found["fault"])


def refuse_other_rotation(facts: ModelFacts) -> None:
    """GPTQModel puts its own function in the place of transformers' for rotary positions, which goes by a key that some classes
    pass over. Raises Unsupported where tables of two sizes would meet."""
    if _PARTIAL not in json.dumps(facts.config) or not (share := rotated_whole(build_model(facts.folder))):
        return
    msg = (
        f"config.json asks for rotary positions of {share:g} of each head ({_PARTIAL}), which transformers passes over for {facts.architecture} and "
        f"GPTQModel, which reads these files, does not, so that it stops. Take the key out of a copy of the model if whole heads are rotated. {_PACKED}"
    )
    raise Unsupported(msg)


def names_for(linears: Linears, tensors: Sequence[str], definition: Definition) -> Names:
    """What the files of a model of experts must call the source's tensors. Raises Unsupported where GPTQModel could not read them.

    tensors: the checkpoint's names.
    """
    other = _ELSE if linears.stacked else _PACKED
    if definition.fault:
        msg = f"GPTQModel, which reads these files, cannot take this model ({definition.fault}). {other}"
        raise Unsupported(msg)
    layers = (*linears.blocks, *linears.taken, *linears.pieces)
    for layer in layers:
        _refuse_unreadable(layer, definition, other)
    left = tuple(layer for layer in layers if layer.module not in definition.layers and layer not in linears.taken)
    held = sum(layer.weights for layer in left) / sum(layer.weights for layer in layers)
    if held > _LEFT:
        msg = (
            f"GPTQModel, which reads these files, takes no codes for {_told([layer.module for layer in left], 'layer')}, "
            f"{held:.0%} of the weights in the layers of the blocks. {other}"
        )
        raise Unsupported(msg)
    names = {layer.name: f"{layer.module}.weight" for layer in linears.blocks}
    names |= {
        name: target
        for name, target in linears.targets.items()
        if name not in names and name not in definition.tensors and definition.has(target)
    }
    _refuse_unfilled(linears, [names.get(name, name) for name in tensors], definition, other)
    return Names(names={name: to for name, to in names.items() if name != to}, left=left)


def _refuse_unreadable(layer: Linear, definition: Definition, other: str) -> None:
    size = definition.layers.get(layer.module)
    if size is None and f"{layer.module}.weight" not in definition.tensors:
        msg = f"GPTQModel, which reads these files, has no layer {layer.module} to hold {layer.name}. {other}"
        raise Unsupported(msg)
    if size not in (None, (layer.out_features, layer.in_features)):
        msg = (
            f"GPTQModel, which reads these files, takes {layer.module} for a layer of {size[0]} outputs and {size[1]} inputs; it has "
            f"{layer.out_features} and {layer.in_features}. {other}"
        )
        raise Unsupported(msg)


def _refuse_unfilled(linears: Linears, names: Sequence[str], definition: Definition, other: str) -> None:
    """Everything that GPTQModel reads must be there, or it would compute with what memory held."""
    pieces = {f"{piece.module}.weight" for piece in linears.pieces} | {*linears.split_biases}
    tied = {f"{linears.head_module}.weight"} if linears.head is None else set()
    missing = sorted(definition.tensors - {*names} - pieces - tied)
    if missing:
        msg = (
            f"GPTQModel, which reads these files, looks for {_told(missing, 'tensor')}, which no tensor of "
            f"the checkpoint fills. {other}"
        )
        raise Unsupported(msg)


def _told(names: Sequence[str], what: str) -> str:
    more = len(names) - 1
    return f"{names[0]} and {more} more {what}{'s' if more > 1 else ''}" if more else names[0]
