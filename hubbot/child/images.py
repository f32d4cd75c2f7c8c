"""A test image shown to every GGUF variant of a model that sees, in llama.cpp, and to the original in transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from hubbot.domain import ImageCheck
from hubbot.errors import HubbotError
from hubbot.formats.gguf.check import ask_sight
from hubbot.formats.gguf.naming import is_vision, text_file, vision_kind
from hubbot.formats.gguf.runtime import compare
from hubbot.formats.images import Layout, Sight, apart, image_for, see_as_base
from hubbot.model.own_tokenizer import text_of

__all__ = ["TOLERANCES", "Gallery"]

# Relative distance of the embeddings of an image. Rounding alone came to 0.0002 to 0.0005 in F16 and to 0.002 to 0.014 in Q8_0
# on tiny models; a wrong matrix, order or norm costs about 1.
TOLERANCES = {"F16": 0.05, "Q8_0": 0.15}
_TEXT = "\nWhat is in this picture?"
_NEW_TOKENS = 8


class Gallery:
    """The test image, and what the original makes of it: looked at once for every layout of the prompt.

    fits: whether the original fits into memory whole; else llama.cpp's answer is compared with nothing.
    """

    def __init__(
        self,
        folder: Path,
        work: Path,
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        *,
        fits: bool,
        device: str,
    ) -> None:
        self._folder, self._work, self._tokenizer, self._ends = folder, work, tokenizer, list(ends)
        self._fits, self._device = fits, torch.device(device)
        self._image = image_for(folder)
        self._known: dict[str, Sight | str] = {}  # layout -> the original's answer, or why there is none

    def show(self, paths: Sequence[Path]) -> tuple[ImageCheck, ...]:
        """What comes of the image with each of a variant's files that see; nothing where it has none."""
        seeing = [path for path in sorted(paths) if is_vision(path.name)]
        return tuple(self._shown(text_file(paths), vision) for vision in seeing)

    def _shown(self, model: Path, vision: Path) -> ImageCheck:
        picture, found = self._work / "test-image.npy", self._work / "sight.safetensors"
        np.save(picture, self._image)
        asked = {"text": _TEXT, "generate": _NEW_TOKENS, "ends": self._ends, "out": str(found), "image": str(picture)}
        answer = ask_sight({"model": str(model), "vision": str(vision), **asked})
        if "error" in answer:
            return ImageCheck(file=vision.name, passed=False, error=answer["error"])
        seen = load_file(found)
        said = text_of(self._tokenizer, answer["said"])
        base = self._original(answer["layout"])
        if isinstance(base, str):
            sound = bool(seen["features"].isfinite().all())
            return ImageCheck(file=vision.name, passed=sound, said=said, error=base)
        return self._compared(vision.name, base, seen["features"], seen["logits"], said)

    def _original(self, layout: Layout) -> Sight | str:
        key = json.dumps(layout)
        if key not in self._known:
            self._known[key] = self._look(layout)
        return self._known[key]

    def _look(self, layout: Layout) -> Sight | str:
        if not self._fits:
            return "not compared: the original does not fit into memory whole"
        try:
            return see_as_base(
                self._folder, self._image, layout, new_tokens=_NEW_TOKENS, ends=self._ends, device=self._device
            )
        except HubbotError as error:
            return f"not compared: {error}"

    def _compared(self, file: str, base: Sight, features: torch.Tensor, logits: torch.Tensor, said: str) -> ImageCheck:
        features = _without_line_ends(features, len(base.features))
        if features.shape != base.features.shape:
            cut = f"llama.cpp cuts the test image into {len(features)} pieces, transformers into {len(base.features)}"
            return ImageCheck(
                file=file, passed=bool(features.isfinite().all()), said=said, error=f"not compared: {cut}"
            )
        distance, tolerance = apart(base.features, features), TOLERANCES[vision_kind(file)]
        passed = math.isfinite(distance) and distance <= tolerance
        kld = compare(base.logits.numpy(), logits.numpy())[0] if base.logits is not None else None
        told = text_of(self._tokenizer, base.said)
        return ImageCheck(
            file=file, passed=passed, distance=distance, tolerance=tolerance, kld=kld, base=told, said=said
        )


def _without_line_ends(features: torch.Tensor, count: int) -> torch.Tensor:
    """Of an image of as many lines as columns, the `count` pieces: Pixtral's lines end with a token of their own."""
    side = math.isqrt(count)
    if side * side != count or len(features) != count + side - 1:
        return features
    return features[[row for row in range(len(features)) if (row + 1) % (side + 1)]]
