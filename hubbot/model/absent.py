"""Parts of a model that want a package which is not here, such as Gemma 3n's eyes, which are a model of timm's.

No text passes through them, so the model is built with stand-ins in their places, which have no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from transformers import AutoModel, PretrainedConfig

from hubbot.model.foreign import said

__all__ = ["Absent", "absent_part_of", "absent_parts", "part_of_timm", "parts_left_out"]

_WRAPPER = "TimmWrapperModel"


class Absent(nn.Module):
    """Stands for a part of a model. wants: what transformers says is missing, a sentence."""

    def __init__(self, wants: str) -> None:
        super().__init__()
        self.wants = wants

    def forward(self, *_: object, **__: object) -> None:
        raise ImportError(self.wants)


@contextmanager
def parts_left_out(whole: PretrainedConfig) -> Iterator[None]:
    """Inside, transformers builds models of this configuration without the parts whose package is missing.

    The part that reads text is none of them: without that there is no model, and what transformers says of it passes.
    """
    text, build = type(whole.get_text_config()), AutoModel.from_config

    def from_config(config: PretrainedConfig, **options: object) -> nn.Module:
        try:
            part: nn.Module = build(config, **options)
        except ImportError as error:
            if isinstance(config, text):
                raise
            return Absent(said(error).partition(": ")[2].partition(". ")[0])
        return part

    AutoModel.from_config = from_config  # where every class that sees or hears has its parts made
    try:
        yield
    finally:
        AutoModel.from_config = build


def absent_parts(model: nn.Module) -> dict[str, Absent]:
    """Path -> the stand-in, of a model that was built without some of its parts."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Absent)}


def part_of_timm(model: nn.Module) -> str | None:
    """The path of a part that is a model of timm's in transformers' wrapper, there or left out."""
    wrapped = (
        path
        for path, module in model.named_modules()
        if type(module).__name__ == _WRAPPER or (isinstance(module, Absent) and _WRAPPER in module.wants)
    )
    return next(wrapped, None)


def absent_part_of(name: str, absent: Iterable[str]) -> str | None:
    """The path of the part that a checkpoint tensor belongs to, by its last name; None where the part is there."""
    return next((path for path in absent if f".{path.rpartition('.')[2]}." in f".{name}"), None)
