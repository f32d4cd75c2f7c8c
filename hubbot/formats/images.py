"""A test image, and what the original model makes of it: what llama.cpp's answer to it is compared with."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoImageProcessor, PreTrainedModel

from hubbot.model.companions import PROCESSORS
from hubbot.model.config import read_values
from hubbot.model.foreign import foreign
from hubbot.model.whole import load_whole

__all__ = ["Layout", "Sight", "apart", "draw_image", "image_for", "see_as_base"]

Layout = Sequence[Sequence[int] | int]  # stretches of a prompt: token ids, or how many embeddings an image is there
Pixels = npt.NDArray[np.uint8]

_SIDE = (
    448  # pixels, where config.json names no other: a multiple of the usual patches, two by two, that nobody enlarges
)
_LARGEST_SIDE = 1024
_KINDS = ("token_type_ids", "mm_token_type_ids")  # 1 where a token stands for a piece of an image


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What came of the image.

    features: its embeddings, float32 [embeddings, width]. logits: behind the text that follows it, float32 [rows, vocab];
    None where the prompt has another number of places for the image. said: greedy tokens.
    """

    features: torch.Tensor
    logits: torch.Tensor | None
    said: list[int]


def image_for(folder: Path) -> Pixels:
    """The test image of the size that a folder's model takes."""
    said = next((read_values(folder / name) for name in PROCESSORS if (folder / name).is_file()), {})
    cutting = said.get("image_processor", said)
    return draw_image(read_values(folder / "config.json"), cutting if isinstance(cutting, Mapping) else {})


def draw_image(config: Mapping[str, Any], cutting: Mapping[str, Any] | None = None) -> Pixels:
    """uint8 [side, side, 3] of the size that the model takes: smooth, so that all ways of resizing give the same.

    config: config.json. cutting: how the source's own processor cuts pictures.
    """
    vision = config.get("vision_config")
    side = vision.get("image_size") if isinstance(vision, Mapping) else None
    side = side[0] if isinstance(side, list) and side else side or _side_of(cutting or {})  # height and width
    side = side if isinstance(side, int) and 0 < side <= _LARGEST_SIDE else _SIDE
    y, x = np.mgrid[0:side, 0:side].astype(np.float64) / side
    disc = 1 / (1 + np.exp(40 * (np.hypot(x - 0.6, y - 0.4) - 0.25)))
    colours = np.stack([x, y, 0.5 + 0.5 * np.sin(3 * np.pi * (x + y))], axis=-1)
    painted = (1 - disc[..., None]) * colours + disc[..., None] * np.array([0.9, 0.2, 0.1])
    pixels: Pixels = np.round(255 * painted).astype(np.uint8)
    return pixels


def _side_of(cutting: Mapping[str, Any]) -> int | None:
    """Of as many pieces as a picture may come to, to which Gemma 4's processor enlarges all."""
    pieces, patch, pool = (cutting.get(key) for key in ("max_soft_tokens", "patch_size", "pooling_kernel_size"))
    if isinstance(pieces, int) and isinstance(patch, int) and isinstance(pool, int) and pieces > 0:
        return math.isqrt(pieces) * patch * pool
    return None


def see_as_base(
    folder: Path, image: Pixels, layout: Layout, *, new_tokens: int, ends: Sequence[int], device: torch.device
) -> Sight:
    """The original model's answer to the prompt that llama.cpp has laid out, in float32 on a CPU, else in its stored dtype.

    Raises SourceRefused with what transformers says.
    """
    dtype = torch.float32 if device.type == "cpu" else "auto"
    then = "The part that sees images cannot be compared so: mend what is named in a copy of the model."
    with foreign("transformers", f"show {folder.name} an image", then=then), torch.inference_mode():
        model = load_whole(folder, dtype).to(device).eval()
        config = model.config
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        given = {name: _on(value, model) for name, value in processor(image, return_tensors="pt").items()}
        features = _features(model, given)
        if len(features) != sum(each for each in layout if isinstance(each, int)):
            return Sight(features=features, logits=None, said=[])
        ids = torch.tensor([_ids(layout, config)], device=device)
        rows = len(layout[-1]) if isinstance(layout[-1], Sequence) else 1
        logits, said = _read(model, given, ids, rows, new_tokens, ends, _image_token(config))
        return Sight(features=features, logits=logits, said=said)


def _on(value: Any, model: PreTrainedModel) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)


def _features(model: PreTrainedModel, given: Mapping[str, Any]) -> torch.Tensor:
    """The image's embeddings as the text model gets them; beside them those that further layers are given (deepstack)."""
    inner = getattr(
        model, "model", None
    )  # names what it takes, where MiniCPM-V's outer one takes anything and Janus' is not there
    seer: Any = inner if hasattr(inner, "get_image_features") else model
    found = seer.get_image_features(**_taken(seer.get_image_features, given), return_dict=True)
    columns = [found.pooler_output, *(getattr(found, "deepstack_features", None) or ())]
    return torch.cat([_flat(column) for column in columns], dim=1).float().cpu()


def _flat(features: Any) -> torch.Tensor:
    """[embeddings, width] of a tensor, or of a list with one for every tile."""
    tensors = features if isinstance(features, list | tuple) else [features]
    return torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors])


def _taken(call: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of what an image processor gives, what a function has a parameter for."""
    return {name: value for name, value in given.items() if name in inspect.signature(call).parameters}


def _image_token(config: Any) -> int:
    return int(getattr(config, "image_token_id", None) or config.image_token_index)


def _ids(layout: Layout, config: Any) -> list[int]:
    token = _image_token(config)
    return [one for each in layout for one in (each if isinstance(each, Sequence) else [token] * each)]


def _read(
    model: PreTrainedModel,
    given: Mapping[str, Any],
    ids: torch.Tensor,
    rows: int,
    new_tokens: int,
    ends: Sequence[int],
    image_token: int,
) -> tuple[torch.Tensor, list[int]]:
    """Logits behind the last `rows` tokens, and greedy tokens; everything is read again for each, as nothing is cached."""
    kinds = [name for name in _KINDS if name in inspect.signature(model.forward).parameters]
    shown = _taken(model.forward, given)
    said: list[int] = []
    first: torch.Tensor | None = None
    while True:
        marked = {name: (ids == image_token).long() for name in kinds}
        logits = model(input_ids=ids, use_cache=False, **shown, **marked).logits[0].float()
        first = logits[-rows:].cpu() if first is None else first
        if len(said) == new_tokens or (said and said[-1] in ends):
            return first, said
        said.append(int(logits[-1].argmax()))
        ids = torch.cat([ids, ids.new_tensor([said[-1:]])], dim=1)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative distance of two sets of embeddings: |one - other| / |one|."""
    return float((one.double() - other.double()).norm() / one.double().norm())
