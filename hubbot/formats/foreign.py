"""Quantized artefacts made anywhere, read back as the checkpoint that they stand for, to be measured.

a GGUF file (or one of its shards), or a folder with a GPTQ, bitsandbytes or plain checkpoint
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from hubbot.domain import Family, Gguf, Variant
from hubbot.errors import SourceRefused, Unsupported
from hubbot.formats.gguf.naming import stem_of
from hubbot.formats.protocol import Encoded, InputStatistics, Needs, VariantFiles
from hubbot.model import snapshot
from hubbot.model.config import read_values
from hubbot.model.parts import Part
from hubbot.model.strict_json import object_of

if TYPE_CHECKING:
    from hubbot.model import ModelFacts

__all__ = ["Artefact", "artefact_names", "read_artefact"]

_STREAMS = ("base", "calibration")  # names of the sweep's own


class Artefact:
    """A finished artefact in the place of an encoder: the sweep measures it and writes nothing."""

    needs = Needs.NOTHING

    def __init__(self, name: str, family: Family, tensors: Mapping[str, Encoded]) -> None:
        self.family = family
        self.variants: tuple[Variant, ...] = (Gguf(type=name),)  # only the name counts here
        self._name = name
        self._tensors = tensors

    def holds(self, part: Part) -> bool:  # noqa: ARG002 - the protocol's
        return True

    def encode(
        self,
        part: Part,
        weights: Mapping[str, torch.Tensor],  # noqa: ARG002 - the protocol's
        statistics: Mapping[str, InputStatistics],  # noqa: ARG002
    ) -> Mapping[str, Mapping[str, Encoded]]:
        return {self._name: {name: self._tensors[name] for name in part.tensors if name in self._tensors}}

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
    if path.suffix == ".gguf":
        from hubbot.formats.gguf.foreign import read_gguf_as_checkpoint

        return Artefact(name or stem_of(path.name), Family.GGUF, _guarded(read_gguf_as_checkpoint(path, base), base))
    if not path.is_dir():
        msg = f"{path} is neither a .gguf file nor a folder with a checkpoint. Name one of these."
        raise SourceRefused(msg)
    family, tensors = _read_folder(path)
    strangers = sorted(set(tensors) - set(base.tensors))
    if strangers or not tensors:
        found = f"{path.name} holds {strangers[0]}" if strangers else f"{path.name} holds no tensor"
        msg = f"{found}, which the base model {base.folder.name} has not. Name the base that it was made from with --base."
        raise SourceRefused(msg)
    return Artefact(name or path.name, family, _guarded(tensors, base))


@dataclass(frozen=True, slots=True)
class _Guarded:
    """A tensor of a stranger's file: what does not decode to the base's shape is refused, whatever goes wrong."""

    name: str
    inner: Encoded
    shape: tuple[int, ...]

    def decode(self) -> torch.Tensor:
        try:
            weight = self.inner.decode()
        except (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            why = (str(error).splitlines() or [""])[0][:200]
            msg = f"{self.name} of the artefact cannot be decoded ({type(error).__name__}: {why}). The file is damaged or not of the form that its configuration names."
            raise SourceRefused(msg) from error
        if tuple(weight.shape) != self.shape:
            msg = f"{self.name} of the artefact has the shape {tuple(weight.shape)}; {self.shape} of the base model is needed. Name the base that it was made from with --base."
            raise SourceRefused(msg)
        return weight


def _guarded(tensors: Mapping[str, Encoded], base: ModelFacts) -> dict[str, Encoded]:
    return {name: _Guarded(name, tensor, tuple(base.tensors[name].shape)) for name, tensor in tensors.items()}


def _read_folder(folder: Path) -> tuple[Family, dict[str, Encoded]]:
    files = snapshot.visible_files(folder)
    checkpoint = _Checkpoint(folder, {name: info.file for name, info in snapshot.read_tensors(files).items()})
    config = read_values(files["config.json"]) if "config.json" in files else {}
    quantization = object_of(config.get("quantization_config") or {}, "quantization_config of config.json")
    match quantization.get("quant_method"):
        case "gptq":
            return Family.GPTQ, _gptq(checkpoint, quantization)
        case "bitsandbytes":
            return Family.BNB, _bitsandbytes(checkpoint)
        case None:
            return Family.BNB, {name: _Plain(checkpoint, name) for name in checkpoint.files}
        case method:
            msg = f"{folder.name} is quantized by {ascii(method)[:60]}, which hubbot cannot decode. It reads GGUF, GPTQ and bitsandbytes."
            raise Unsupported(msg)


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    folder: Path
    files: Mapping[str, str]

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self.folder / self.files[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


@dataclass(frozen=True, slots=True)
class _Plain:
    """A tensor that the artefact stores unquantized."""

    checkpoint: _Checkpoint
    name: str

    def decode(self) -> torch.Tensor:
        return self.checkpoint[self.name].to(torch.float32)


@dataclass(frozen=True, slots=True)
class _Gptq:
    checkpoint: _Checkpoint
    stem: str
    bits: int
    zeros_less_one: bool

    def decode(self) -> torch.Tensor:
        from hubbot.formats.gptq.packing import unpack_codes, unpack_zeros

        qweight, qzeros, scales, group_of = (
            self.checkpoint[f"{self.stem}.{name}"] for name in ("qweight", "qzeros", "scales", "g_idx")
        )
        group = group_of.long()
        zeros = unpack_zeros(qzeros, self.bits).to(torch.float32) + (1 if self.zeros_less_one else 0)
        codes = unpack_codes(qweight, self.bits).to(torch.float32)
        weight = (codes - zeros[group]) * scales.to(torch.float32)[group]
        return weight.to(torch.float16).to(torch.float32).t().contiguous()


def _gptq(checkpoint: _Checkpoint, quantization: Mapping[str, Any]) -> dict[str, Encoded]:
    first_version = quantization.get("checkpoint_format", "gptq") != "gptq_v2"
    bits = quantization.get("bits")
    if bits not in (2, 3, 4, 8):
        msg = f"quantization_config gives {ascii(bits)[:60]} bits; GPTQ has 2, 3, 4 or 8. The artefact is damaged."
        raise SourceRefused(msg)
    tensors: dict[str, Encoded] = {}
    for name in checkpoint.files:
        stem, _, kind = name.rpartition(".")
        if kind == "qweight":
            tensors[f"{stem}.weight"] = _Gptq(checkpoint, stem, int(bits), first_version)
        elif kind not in ("qzeros", "scales", "g_idx"):
            tensors[name] = _Plain(checkpoint, name)
    return tensors


@dataclass(frozen=True, slots=True)
class _FourBit:
    checkpoint: _Checkpoint
    name: str
    parts: tuple[str, ...]

    def decode(self) -> torch.Tensor:
        from bitsandbytes.functional import QuantState

        from hubbot.formats.bnb import PackedTensor

        state = {part.removeprefix(f"{self.name}."): self.checkpoint[part] for part in self.parts}
        return PackedTensor(
            self.checkpoint[self.name], QuantState.from_dict(state, device=torch.device("cpu"))
        ).decode()


@dataclass(frozen=True, slots=True)
class _EightBit:
    checkpoint: _Checkpoint
    stem: str

    def decode(self) -> torch.Tensor:
        from hubbot.formats.bnb import Int8Tensor

        return Int8Tensor(self.checkpoint[f"{self.stem}.weight"], self.checkpoint[f"{self.stem}.SCB"]).decode()


def _bitsandbytes(checkpoint: _Checkpoint) -> dict[str, Encoded]:
    tensors: dict[str, Encoded] = {}
    parts_of: dict[str, list[str]] = {}  # weight -> what its quantization state is stored in
    for name in checkpoint.files:
        stem, found, _ = name.partition(".weight.")
        if found:
            parts_of.setdefault(f"{stem}.weight", []).append(name)
    for name in checkpoint.files:
        stem, _, kind = name.rpartition(".")
        if kind != "weight":
            if kind == "bias":
                tensors[name] = _Plain(checkpoint, name)
            continue
        if name in parts_of:
            tensors[name] = _FourBit(checkpoint, name, tuple(parts_of[name]))
        elif f"{stem}.SCB" in checkpoint.files:
            tensors[name] = _EightBit(checkpoint, stem)
        else:
            tensors[name] = _Plain(checkpoint, name)
    return tensors
