"""The mean of every layer's scales, read before anything is written.

Under double quantization bitsandbytes writes it into the text of a layer's quantization state with as many digits as it
has, so where the tensors behind it lie in a file depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from hubbot.formats.bnb.layout import BLOCK
from hubbot.formats.linears import Linear, Linears
from hubbot.formats.notes import write_json
from hubbot.model import ModelFacts
from hubbot.model.weights import read_tensor

__all__ = ["mean_scales", "scales_of"]

_THREADS = 4


def mean_scales(facts: ModelFacts, linears: Linears, device: torch.device, kept: Path) -> dict[str, float]:
    """Name of a layer's weight -> the mean of its scales, a float32, to the bit that of bitsandbytes on a CPU.

    Reads the layers' weights once, a few at a time. kept: where a run that was killed meanwhile finds them.
    """
    if kept.exists():
        found: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="scales") as pool:
        read = pool.map(lambda item: list(_of_tensor(facts, *item, device=device)), linears.held.items())
        found = {name: mean for means in read for name, mean in means}
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, found)
    return found


def _of_tensor(
    facts: ModelFacts, tensor: str, layers: Sequence[Linear], *, device: torch.device
) -> Iterator[tuple[str, float]]:
    weight = read_tensor(facts.folder, tensor, facts.tensors[tensor]).to(device)
    for layer in layers:
        yield layer.name, scales_of(layer.upright(weight)).cpu().mean().item()


def scales_of(weight: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each block: float32 [blocks], the last one of what is left. weight: any float dtype."""
    flat = weight.contiguous().reshape(-1)
    whole = len(flat) // BLOCK * BLOCK
    found = flat[:whole].reshape(-1, BLOCK).abs().amax(1).float()  # thrice as fast as aminmax
    return torch.cat((found, flat[whole:].abs().amax()[None].float())) if whole < len(flat) else found
