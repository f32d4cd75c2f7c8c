"""Quantized artefacts made anywhere, read back as the checkpoint that they stand for, to be measured.

a GGUF file (or one of its shards), or a folder with a GPTQ, bitsandbytes or plain checkpoint
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hubbot.domain import Family
from hubbot.errors import HubbotError, SourceRefused, Unsupported
from hubbot.formats import FAMILIES
from hubbot.formats.gguf.naming import shards_of, stem_of
from hubbot.formats.protocol import Encoded, InputStatistics, Needs, VariantFiles
from hubbot.formats.stored import Checkpoint, Plain, quantization_of
from hubbot.model.foreign import said
from hubbot.model.parts import Part

if TYPE_CHECKING:
    from hubbot.formats.linears import Linears
    from hubbot.model import ModelFacts

__all__ = ["Artefact", "artefact_names", "read_artefact", "weight_bytes"]

_STREAMS = ("base", "calibration")  # names of the sweep's own


class Artefact:
    """A finished artefact in the place of an encoder: the sweep measures it and writes nothing."""

    family = "artefact"
    needs = Needs.NOTHING

    def __init__(self, name: str, tensors: Mapping[str, Encoded], made_by: Family | None = None) -> None:
        """made_by: whose form it has; None: a plain checkpoint's."""
        self.name = name
        self.made_by = made_by
        self.variants = (self,)
        self._tensors = tensors

    def holds(self, part: Part) -> bool:  # noqa: ARG002 - the protocol's
        return True

    def encode(
        self,
        part: Part,
        weights: Mapping[str, torch.Tensor],  # noqa: ARG002 - the protocol's
        statistics: Mapping[str, InputStatistics],  # noqa: ARG002
    ) -> Mapping[str, Mapping[str, Encoded]]:
        return {self.name: {name: self._tensors[name] for name in part.tensors if name in self._tensors}}

    def finish(self) -> Mapping[str, VariantFiles]:
        return {}


def artefact_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for every artefact: the end of its path, as long as it takes to tell it from the others.

    paths: absolute and distinct. A sweep carries what it measures under these names, beside streams of its own.
    """
    found = {}
    for path in paths:
        ends = (end for end in range(1, len(path.parts)) if _is_telling(path, end, paths))
        found[path] = next((_end(path, end) for end in ends), str(path))
    return found


def _is_telling(path: Path, count: int, paths: Sequence[Path]) -> bool:
    name = _end(path, count)
    return name not in _STREAMS and [_end(other, count) for other in paths].count(name) == 1


def _end(path: Path, count: int) -> str:
    """The last parts of a path, without what a GGUF's name has for its format and shards."""
    return "/".join((*path.parts[-count:-1], stem_of(path.name)))


def read_artefact(path: Path, base: ModelFacts, name: str | None = None) -> Artefact:
    """Open an artefact of the base model. name: what to measure it under, by default its file's or folder's.

    Raises SourceRefused where it is no checkpoint or not of this base, Unsupported for a quantization
    method that hubbot cannot decode.
    """
    made_by, tensors = _tensors(path, base)
    strangers = sorted(set(tensors) - set(base.tensors))
    if strangers or not tensors:
        found = f"{path.name} holds {strangers[0]}" if strangers else f"{path.name} holds no tensor"
        msg = f"{found}, which the base model {base.folder.name} has not. Name the base that it was made from with --base."
        raise SourceRefused(msg)
    return Artefact(name or _end(path, 1), _guarded(tensors, base), made_by)


def weight_bytes(path: Path) -> int:
    """Bytes of an artefact's weight files, those of all its shards."""
    endings = {".safetensors", ".bin"}
    files = [file for file in path.iterdir() if file.suffix in endings] if path.is_dir() else shards_of(path)
    return sum(file.stat().st_size for file in files)


def _tensors(path: Path, base: ModelFacts) -> tuple[Family | None, Mapping[str, Encoded]]:
    for name, family in FAMILIES.items():
        if (found := family.artefact(path, base)) is not None:
            return name, _as_stored(found, base) if family.ABOUT.folder else found
    if not path.is_dir():
        msg = f"{path} is neither a .gguf file nor a folder with a checkpoint. Name one of these."
        raise SourceRefused(msg)
    if (method := quantization_of(path).get("quant_method")) is not None:
        *first, last = (family.ABOUT.title for family in FAMILIES.values())
        msg = f"{path.name} is quantized by {ascii(method)[:60]}, which hubbot cannot decode. It reads {', '.join(first)} and {last}."
        raise Unsupported(msg)
    checkpoint = Checkpoint.of(path)
    return None, {name: Plain(checkpoint, name) for name in checkpoint.files}


def _as_stored(tensors: Mapping[str, Encoded], base: ModelFacts) -> dict[str, Encoded]:
    """A folder's weights are [out, in], also of layers that the base stores the other way round, and may go under its reader's names."""
    from hubbot.formats.linears import find_linears

    try:
        linears = find_linears(base)
    except Unsupported:  # no layers that such a folder could hold quantized
        return dict(tensors)
    layers = linears.by_name
    return {
        name: layers[name].as_stored(tensor) if name in layers and not isinstance(tensor, Plain) else tensor
        for name, tensor in _under_names_of(base, tensors, linears).items()
    }


def _under_names_of(base: ModelFacts, tensors: Mapping[str, Encoded], linears: Linears) -> dict[str, Encoded]:
    """GPTQ files of experts go under GPTQModel's names, those that the base has in one tensor by themselves."""
    from hubbot.formats.stack import Stack

    theirs = {target: name for name, target in linears.targets.items()}
    theirs |= {f"{layer.module}.weight": layer.name for layer in linears.blocks}
    found = {name if name in base.tensors else theirs.get(name, name): tensor for name, tensor in tensors.items()}
    inside = {piece.name: piece.cut for piece in linears.pieces if piece.cut} | {**linears.split_biases}
    transposed = {piece.tensor for piece in linears.pieces if piece.transposed}
    for stacked in dict.fromkeys(cut.tensor for cut in inside.values()):
        cuts = {name: cut for name, cut in inside.items() if cut.tensor == stacked}
        if stacked not in found and cuts.keys() <= found.keys():
            nothing = torch.zeros(1).expand(base.tensors[stacked].shape)
            found[stacked] = Stack(
                nothing, stacked in transposed, [(cut, found.pop(name)) for name, cut in cuts.items()]
            )
    return found


@dataclass(frozen=True, slots=True)
class _Guarded:
    """A tensor of a stranger's file: what does not decode to the base's shape is refused, whatever goes wrong."""

    name: str
    inner: Encoded
    shape: tuple[int, ...]

    def decode(self) -> torch.Tensor:
        try:
            weight = self.inner.decode()
        except HubbotError:
            raise
        except Exception as error:  # a stranger's bytes, in whatever library reads their form
            msg = f"{self.name} of the artefact cannot be decoded ({said(error)}). The file is damaged or not of the form that its configuration names."
            raise SourceRefused(msg) from error
        if tuple(weight.shape) != self.shape:
            msg = f"{self.name} of the artefact has the shape {tuple(weight.shape)}; {self.shape} of the base model is needed. Name the base that it was made from with --base."
            raise SourceRefused(msg)
        return weight


def _guarded(tensors: Mapping[str, Encoded], base: ModelFacts) -> dict[str, Encoded]:
    return {name: _Guarded(name, tensor, tuple(base.tensors[name].shape)) for name, tensor in tensors.items()}
