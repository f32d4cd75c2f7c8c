"""Where tests run Triton's kernels: compiled on a card where there is one, or else by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["compiled_for_a_card", "launched"]


def compiled_for_a_card() -> bool:
    """Whether torch has a card to compile for. It is imported only where a driver is."""
    if not Path("/dev/nvidiactl").exists():
        return False
    import torch

    return torch.cuda.is_available()


def launched(launcher: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """Call a launcher with tensors that lie on the CPU, through a card where there is one.

    What it changes is changed in `given`, and what it returns lies on the CPU.
    """
    if not compiled_for_a_card():
        return launcher(*given, **named)
    import torch

    there = [one.cuda() if isinstance(one, torch.Tensor) else one for one in given]
    found = launcher(*there, **named)
    for one, other in zip(given, there, strict=True):
        if isinstance(one, torch.Tensor):
            one.copy_(other)
    if isinstance(found, torch.Tensor):
        return found.cpu()
    return tuple(one.cpu() for one in found) if found is not None else None
