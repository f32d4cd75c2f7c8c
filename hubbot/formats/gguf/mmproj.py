"""The part of a model that sees images, as files of their own: `mmproj-<name>-F16.gguf` and `-Q8_0.gguf`.

llama.cpp's converter makes them (`--mmproj`) and chooses every tensor's type; `llama-server` takes one beside the text's
file. They are laid out from headers alone and written tensor by tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from hubbot import llamacpp
from hubbot.domain import Source
from hubbot.errors import Unsupported
from hubbot.formats.gguf.converter import NEXT, Converted, convert_vision
from hubbot.formats.gguf.graph import evaluate
from hubbot.formats.gguf.layout import Shard, lay_out
from hubbot.formats.gguf.metadata import file_metadata
from hubbot.formats.gguf.naming import VISION_KINDS, file_stem, vision_name
from hubbot.formats.gguf.plan import Facts
from hubbot.formats.gguf.store import GgufFile
from hubbot.model.architectures import sees_images
from hubbot.model.companions import PROCESSORS
from hubbot.model.parts import in_tower

__all__ = ["VisionPlan", "plan_vision", "write_vision"]

Read = Callable[[str], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionPlan:
    """files: name -> what it will be; none of a model that reads text alone. note: why there are none of one that sees."""

    files: Mapping[str, Shard] = field(default_factory=dict)
    note: str | None = None

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.files.values())


def plan_vision(source: Source, facts: Facts, read: Read, *, quantized_by: str | None = None) -> VisionPlan:
    """What llama.cpp's converter makes of the part that sees images; no weight is read."""
    architecture = str((facts.config.get("architectures") or [""])[0])
    if not sees_images(architecture):
        return VisionPlan()
    if not any((Path(facts.folder) / name).exists() for name in PROCESSORS):
        return VisionPlan(
            note=_blind(f"neither {' nor '.join(PROCESSORS)}, which say how a picture is cut, lies beside it")
        )
    llamacpp.require_multimodal()  # a file that nobody could look at is not made
    files = {}
    try:
        for kind in VISION_KINDS:
            model = convert_vision(Path(facts.folder), facts.tensors, read, kind=kind, name=source.name)
            _refuse_hollow(model, facts.tensors)
            placed = [(tensor, tensor.kind) for tensor in model.tensors]
            metadata = file_metadata(model.metadata, kind, source, quantized_by, {})
            (files[vision_name(file_stem(source.name), kind)],) = lay_out(placed, metadata, model.architecture)
    except Unsupported as error:
        return VisionPlan(note=_blind(str(error).removesuffix(NEXT).strip()))
    return VisionPlan(files=files)


def _refuse_hollow(model: Converted, stored: Iterable[str]) -> None:
    """Raise Unsupported for a file without most of the tower, or without the end of Pixtral's lines: passed over in silence."""
    tower = {name for name in stored if in_tower(name) and not _PAINTS.search(name)}
    held = {leaf for tensor in model.tensors for leaf in tensor.leaves}
    left = sorted(tower - held)
    if 2 * len(left) > len(tower):
        msg = f"llama.cpp's converter leaves out {len(left)} of the {len(tower)} tensors that see, {left[0]} the first"
        raise Unsupported(msg)
    kinds = {str(value.value) for key, value in model.metadata.items() if key.endswith("projector_type")}
    if "pixtral" in kinds and not any(tensor.name.startswith("v.token_embd.img_break") for tensor in model.tensors):
        msg = (
            "llama.cpp's converter leaves out the embedding of [IMG_BREAK], without which llama.cpp loads no such file"
        )
        raise Unsupported(msg)


_PAINTS = re.compile(
    r"(^|\.)(vqmodel|generation_\w+)\."
)  # Janus' part that makes images, which is no part of such a file


def _blind(why: str) -> str:
    return f"the GGUF files read text alone, without the part of the model that sees images: {why}"


def write_vision(plan: VisionPlan, read: Read, work: Path, out: Path) -> tuple[Path, ...]:
    """The files, whole, under their names in `out`; `work` holds them until they are."""
    return tuple(_write(shard, read, work / f"{name}.partial", out / name) for name, shard in plan.files.items())


def _write(shard: Shard, read: Read, partial: Path, final: Path) -> Path:
    file = GgufFile(shard, partial, final)
    try:
        for placed in shard.tensors:
            values = np.ascontiguousarray(evaluate(placed.tensor.value, read))
            file.write_rows(placed.tensor.name, 0, values.reshape(-1).view(np.uint8))
        return file.finish()
    finally:
        file.close()
